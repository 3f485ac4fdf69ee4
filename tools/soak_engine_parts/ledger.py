"""Who was promised what: each accepted request with the tokens that came, until its one end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from paddle_ds.engine.core import Failure, Limits
from paddle_ds.errors import PaddleDSError
from paddle_ds.sched import NewToken, Request, RequestEnd
from soak_engine_parts.checks import Violation, require
from soak_engine_parts.orders import Order


@dataclass
class Entry:
    """A request that has not ended."""

    order: Order
    #: tokens with their log probabilities (``None`` where none were asked for)
    answer: list[tuple[int, float | None]] = field(default_factory=list)
    queued_steps: int = 0


@dataclass(frozen=True)
class Ended:
    """A request that has: what it gave, and how often it was preempted. ``reason``: stop, length, abort or failed."""

    order: Order
    answer: list[tuple[int, float | None]]
    reason: str
    num_preemptions: int

    @property
    def token_ids(self) -> list[int]:
        return [*self.order.prompt, *(token for token, _ in self.answer)]


class Ledger:
    """Checks every token and every end against what is open. Holds nothing of the engine's and nothing of the past."""

    def __init__(self, limits: Limits, max_queued_steps: int) -> None:
        self._limits = limits
        self._max_queued_steps = max_queued_steps
        self.live: dict[str, Entry] = {}
        self.ends: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.num_tokens = 0

    def open(self, order: Order) -> None:
        """The engine has accepted ``order``."""
        require(order.refusal is None, f"request {order.request_id} was accepted; {order.refusal} was due")
        self.live[order.request_id] = Entry(order)

    def refuse(self, order: Order, error: PaddleDSError, *, queue_is_full: bool) -> None:
        """The engine has refused ``order``, which is its end."""
        if order.refusal is None:
            require(queue_is_full, f"request {order.request_id} was refused for nothing: {error}")
        else:
            require(type(error) is order.refusal, f"request {order.request_id}: {order.refusal} was due, came {error!r}")
        self.refusals[error.code] += 1

    def token(self, new: NewToken) -> None:
        """A token of an answer."""
        entry = self._entry(new.request, "a token")
        entry.answer.append((new.sampled.token_id, new.sampled.logprob))
        self.num_tokens += 1
        require(0 <= new.sampled.token_id < self._limits.num_tokens, f"token {new.sampled.token_id} does not exist")
        wanted = entry.order.params.logprobs
        require((new.sampled.logprob is None) == (wanted is None), "log probabilities do not come as asked")
        require(len(new.sampled.top) == (wanted or 0), f"{len(new.sampled.top)} alternatives came; {wanted} were asked for")

    def end(self, end: RequestEnd) -> Ended:
        """The end of a request that the scheduler reports."""
        entry = self._entry(end.request, f"an end ({end.reason})")
        self._check_length(entry, end)
        return self._close(end.request, end.reason)

    def fail(self, failure: Failure) -> Ended:
        """A request whose step failed."""
        self._entry(failure.request, "a failure")
        return self._close(failure.request, "failed")

    def age(self) -> None:
        """A step is over."""
        for name, entry in self.live.items():
            entry.queued_steps += 1
            require(entry.queued_steps <= self._max_queued_steps, f"request {name} has not ended in {entry.queued_steps} steps")

    def _entry(self, request: Request, what: str) -> Entry:
        entry = self.live.get(request.request_id)
        if entry is None:
            raise Violation(f"{what} of request {request.request_id}, which is over or was never accepted")
        return entry

    def _check_length(self, entry: Entry, end: RequestEnd) -> None:
        name, params, given = entry.order.request_id, entry.order.params, len(entry.answer)
        room = self._limits.max_context_tokens - len(entry.order.prompt)
        most = room if params.max_tokens is None else params.max_tokens
        require(given <= most, f"request {name} got {given} tokens; {most} were allowed")
        if end.reason == "length":
            require(given == most, f"request {name} ended by length with {given} of {most} tokens")
        if end.reason == "stop":
            own = frozenset() if params.ignore_eos else self._limits.eos_ids
            require(end.stop_token_id in own | {*params.stop_token_ids}, f"request {name} stopped at {end.stop_token_id}")
            require(given >= params.min_tokens, f"request {name} stopped after {given} tokens; min_tokens is {params.min_tokens}")

    def _close(self, request: Request, reason: str) -> Ended:
        require(not request.block_ids, f"request {request.request_id} ended ({reason}) and holds blocks {request.block_ids}")
        entry = self.live.pop(request.request_id)
        self.ends[reason] += 1
        return Ended(entry.order, entry.answer, reason, request.num_preemptions)
