"""``Engine``: requests in, tokens out, one step at a time. The same object serves the offline ``LLM`` and the engine process."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import DeviceLost, DeviceOutOfMemory, InternalError, InvalidRequest, PaddleDSError, PromptTooLong
from paddle_ds.logs import fields
from paddle_ds.sched import NewToken, Request, RequestEnd, SampledToken, Scheduler, StepPlan

logger = logging.getLogger(__name__)

#: steps without a failure after which a step that was made smaller may be twice as large again
_GROW_AFTER_STEPS = 256


class Runner(Protocol):
    """What the engine needs of a model: :class:`paddle_ds.runtime.model_runner.ModelRunner`, or a fake."""

    def execute(self, plan: StepPlan) -> list[SampledToken]: ...


@dataclass(frozen=True)
class Limits:
    """What a request is held to."""

    max_context_tokens: int
    #: ids from here up do not exist
    num_tokens: int
    #: ids with which the model ends its answer
    eos_ids: frozenset[int]


@dataclass(frozen=True)
class Failure:
    """A request that ended badly."""

    request: Request
    error: PaddleDSError


@dataclass(frozen=True)
class Progress:
    """Everything one step brought."""

    tokens: list[NewToken] = field(default_factory=list)
    ended: list[RequestEnd] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


@dataclass
class Counters:
    """Totals since the engine was made."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    failed_steps: int = 0
    #: steps that were computed again in smaller ones, because memory ran out
    shrunk_steps: int = 0


class Engine:
    """Scheduler and runner under one roof. Not thread-safe: one thread adds, steps and aborts."""

    def __init__(self, scheduler: Scheduler, runner: Runner, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.scheduler = scheduler
        self.limits = limits
        self.counters = Counters()
        self._runner = runner
        self._clock = clock
        self._steps_since_shrink = 0
        #: why nothing can be computed any more, once that is so
        self.lost: DeviceLost | None = None

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        """Queue a request for one answer.

        Raises:
            InvalidRequest: an empty prompt, or a token id that does not exist.
            PromptTooLong: prompt and answer exceed the context.
            ServerOverloaded: the queue is full.
            DeviceLost: the device failed in an earlier step.
        """
        if self.lost is not None:
            raise self.lost
        request = Request(
            request_id,
            list(prompt_ids) or _refuse_empty(),
            params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            max_new_tokens=self._max_new_tokens(len(prompt_ids), params),
            end_ids=(frozenset() if params.ignore_eos else self.limits.eos_ids) | frozenset(params.stop_token_ids),
            arrival_s=self._clock(),
        )
        self._check_ids(prompt_ids, params)
        self.scheduler.add(request)
        return request

    def abort(self, request_ids: Iterable[str]) -> list[RequestEnd]:
        """End requests now; their blocks are free when this returns."""
        return self.scheduler.abort(request_ids)

    def step(self) -> Progress:
        """One forward pass. A failing step ends the requests that were in it, and no others.

        Where memory runs out the step is made smaller, and only a request that cannot be computed by itself fails. A device
        that is lost ends all requests.
        """
        plan = self.scheduler.schedule()
        if not plan.chunks:
            return Progress()
        try:
            tokens = self._runner.execute(plan)
        except DeviceOutOfMemory as error:
            return self._shrink(plan, error)
        except Exception as error:
            return self._fail(plan, error)
        self._grow()
        output = self.scheduler.update(plan, tokens)
        self.counters.steps += 1
        self.counters.generation_tokens += len(tokens)
        self.counters.prompt_tokens += sum(
            chunk.request.num_prompt_tokens for chunk in plan.chunks if chunk.sample and _is_first(chunk.request)
        )
        return Progress(output.tokens, output.ended)

    def _fail(self, plan: StepPlan, error: Exception) -> Progress:
        self.counters.failed_steps += 1
        ids = [chunk.request.request_id for chunk in plan.chunks]
        logger.exception("step.failed", extra=fields(requests=",".join(ids)))
        known = error if isinstance(error, PaddleDSError) else InternalError(f"the step failed: {error}")
        if isinstance(known, DeviceLost):
            self.lost = known
            ids = [request.request_id for request in (*self.scheduler.running, *self.scheduler.waiting)]
        return Progress(failed=[Failure(end.request, known) for end in self.scheduler.abort(ids)])

    def _shrink(self, plan: StepPlan, error: DeviceOutOfMemory) -> Progress:
        """Nothing of the plan counts as computed; what it had written is written again. One token by itself cannot be divided."""
        if plan.num_tokens == 1:
            return self._fail(plan, error)
        self.counters.shrunk_steps += 1
        self._steps_since_shrink = 0
        self.scheduler.limit_step(plan.num_tokens // 2)
        limits = {"max_tokens": self.scheduler.max_batch_tokens, "max_running": self.scheduler.max_running_requests}
        logger.warning("step.shrunk", extra=fields(tokens=plan.num_tokens, because=error.message, **limits))
        return Progress()

    def _grow(self) -> None:
        self._steps_since_shrink += 1
        if self._steps_since_shrink >= _GROW_AFTER_STEPS:
            self._steps_since_shrink = 0
            self.scheduler.limit_step(2 * self.scheduler.max_batch_tokens)

    def _max_new_tokens(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        limit = self.limits.max_context_tokens
        room = limit - num_prompt_tokens
        if room < 1 or (params.max_tokens is not None and params.max_tokens > room):
            raise PromptTooLong.of(num_prompt_tokens, params.max_tokens, limit)
        return params.max_tokens or room

    def _check_ids(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        for name, ids in (
            ("prompt", prompt_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias or ()),
        ):
            for token_id in ids:
                if not 0 <= token_id < self.limits.num_tokens:
                    raise InvalidRequest(
                        f"{name} holds token id {token_id}; this model has ids 0 to {self.limits.num_tokens - 1}", param=name
                    )


def _refuse_empty() -> list[int]:
    raise InvalidRequest("the prompt has no tokens", param="prompt")


def _is_first(request: Request) -> bool:
    return request.num_output_tokens == 1


def boot_id() -> str:
    """A name for one start of an engine."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"
