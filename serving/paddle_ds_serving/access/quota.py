"""What a key may use in a minute: requests, counted at the door, and tokens, reserved before an answer and settled after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from paddle_ds_serving.access.errors import RateLimitExceeded
from paddle_ds_serving.access.keys import Principal
from paddle_ds_serving.access.limits import WINDOW_S, Store

if TYPE_CHECKING:
    from paddle_ds_serving.generation import Order

Settle = Callable[[int], None]


class Quota:
    """The buckets of all keys."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def count_request(self, principal: Principal) -> None:
        """Take one request of the key's quota.

        Raises:
            RateLimitExceeded: it has none left.
        """
        if principal.requests_per_minute is None:
            return
        wait_s = self._store.take(f"{principal.id}#requests", WINDOW_S / principal.requests_per_minute)
        if wait_s > 0:
            raise _exceeded(principal.id, f"{principal.requests_per_minute} requests", wait_s)

    def reserve(self, principal: Principal, num_tokens: int) -> Settle:
        """Take the tokens that an order can need at most. The result is told those that it has used, and gives back the rest.

        An order that can need more than a minute's quota waits for a full bucket, and what it uses beyond becomes a debt.

        Raises:
            RateLimitExceeded: too few are left.
        """
        quota = principal.tokens_per_minute
        if quota is None:
            return lambda num_used: None
        name, reserved = f"{principal.id}#tokens", min(num_tokens, quota)
        wait_s = self._store.take(name, reserved * WINDOW_S / quota)
        if wait_s > 0:
            raise _exceeded(principal.id, f"{quota} tokens", wait_s)
        return lambda num_used: self._store.charge(name, (num_used - reserved) * WINDOW_S / quota)


def most_tokens(order: Order, max_context_tokens: int) -> int:
    """The tokens that an order can need: each prompt, and for each answer ``max_tokens`` or the rest of the context."""
    total = 0
    for prompt in order.prompts:
        room = max(max_context_tokens - len(prompt.ids), 0)
        answer = room if order.params.max_tokens is None else min(order.params.max_tokens, room)
        total += len(prompt.ids) + order.params.n * answer
    return total


def _exceeded(key_id: str, quota: str, wait_s: float) -> RateLimitExceeded:
    return RateLimitExceeded(
        f"the key {key_id!r} has a quota of {quota} a minute, and too little of it is left; try again in {wait_s:.3g} s",
        retry_after_s=wait_s,
    )
