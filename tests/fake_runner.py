"""Stands in for a model: tokens are a hash of the context, the KV cache a table of who wrote what where. No paddle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.sched import Chunk, Request, SampledToken, StepPlan

VOCABULARY = 8


def next_token(context: Sequence[int], seed: int, suppressed: frozenset[int] = frozenset()) -> int:
    """The token that follows ``context``, the same wherever and whenever it is asked for."""
    digest = hashlib.blake2b(repr((seed, list(context))).encode(), digest_size=4).digest()
    allowed = [token for token in range(VOCABULARY) if token not in suppressed] or list(range(VOCABULARY))
    return allowed[int.from_bytes(digest, "big") % len(allowed)]


def answer_of(request: Request) -> list[int]:
    """What a request must come to when it is left alone: its answer, the id that ends it included."""
    ids = list(request.prompt_ids)
    while len(ids) - request.num_prompt_tokens < request.max_new_tokens:
        short = len(ids) - request.num_prompt_tokens < request.params.min_tokens
        ids.append(next_token(ids, request.seed, request.end_ids if short else frozenset()))
        if ids[-1] in request.end_ids:
            break
    return ids[request.num_prompt_tokens :]


def make_request(
    request_id: str = "a",
    prompt: int | Sequence[int] = 3,
    *,
    max_new_tokens: int = 4,
    end_ids: Sequence[int] = (),
    seed: int = 0,
    **params: Any,
) -> Request:
    """A request; ``prompt`` is a number of tokens or the tokens."""
    prompt_ids = [i % VOCABULARY for i in range(prompt)] if isinstance(prompt, int) else list(prompt)
    return Request(
        request_id,
        prompt_ids,
        SamplingParams(**params),
        seed=seed,
        max_new_tokens=max_new_tokens,
        end_ids=frozenset(end_ids),
    )


class FakeRunner:
    """Executes plans and fails where a real model would read keys and values that are not there.

    Attributes:
        fail: raised by the next step, once.
        plans: every plan that was executed.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._cache: dict[int, tuple[Request, int, int]] = {}
        self.fail: Exception | None = None
        self.plans: list[StepPlan] = []

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        self.plans.append(plan)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        for chunk in plan.chunks:
            self._compute(chunk)
        return [self._sample(chunk.request) for chunk in plan.chunks if chunk.sample]

    def _compute(self, chunk: Chunk) -> None:
        request = chunk.request
        assert chunk.start == request.num_computed_tokens
        assert chunk.token_ids == request.token_ids[chunk.start : chunk.context_tokens]
        for position in range(chunk.start, chunk.context_tokens):
            self._cache[self._slot(request, position)] = (request, position, request.token_ids[position])
        for position in range(chunk.context_tokens):
            assert self._cache.get(self._slot(request, position)) == (request, position, request.token_ids[position])

    def _slot(self, request: Request, position: int) -> int:
        return request.block_ids[position // self._block_tokens] * self._block_tokens + position % self._block_tokens

    def _sample(self, request: Request) -> SampledToken:
        return SampledToken(next_token(request.token_ids, request.seed, request.suppressed_ids))
