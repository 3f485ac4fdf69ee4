"""Stands in for a model: tokens are a hash of the context, and so are the keys and values in the cache. No paddle."""

from __future__ import annotations

import hashlib
import itertools
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


def keys_and_values(ids: Sequence[int]) -> list[int]:
    """What the cache holds for each token: something that depends on the token and on all before it."""
    return list(itertools.accumulate(ids, lambda before, token: hash((before, token)), initial=0))[1:]


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
    """A request; ``prompt`` is the tokens, or how many tokens that no request of another name shares."""
    if isinstance(prompt, int):
        prompt = [VOCABULARY + sum(request_id.encode()), *range(prompt - 1)]
    return Request(
        request_id,
        list(prompt),
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
        self._cache: dict[int, int] = {}
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

    def spoil(self, plan: StepPlan) -> None:
        """What a step that fails half-way leaves: nonsense where it would have written."""
        for chunk in plan.chunks:
            for position in range(chunk.start, chunk.context_tokens):
                self._cache[self._slot(chunk.request, position)] = -1

    def _compute(self, chunk: Chunk) -> None:
        request = chunk.request
        assert chunk.start == request.num_computed_tokens
        assert chunk.token_ids == request.token_ids[chunk.start : chunk.context_tokens]
        expected = keys_and_values(request.token_ids[: chunk.context_tokens])
        for position in range(chunk.start, chunk.context_tokens):
            self._cache[self._slot(request, position)] = expected[position]
        for position in range(chunk.context_tokens):
            assert self._cache.get(self._slot(request, position)) == expected[position]

    def _slot(self, request: Request, position: int) -> int:
        return request.block_ids[position // self._block_tokens] * self._block_tokens + position % self._block_tokens

    def _sample(self, request: Request) -> SampledToken:
        return SampledToken(next_token(request.token_ids, request.seed, request.suppressed_ids))
