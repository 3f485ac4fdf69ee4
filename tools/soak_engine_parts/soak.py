"""The loop: orders come, clients leave, the engine steps, and everything is looked at in between."""

from __future__ import annotations

import dataclasses
import logging
import random
import time
import traceback
from collections import Counter
from typing import Any

from paddle_ds.engine.core import Engine, Progress, Runner
from paddle_ds.errors import PaddleDSError, ServerOverloaded
from paddle_ds.sched import SampledToken, Status, StepPlan
from soak_engine_parts.checks import (
    ObjectCounts,
    ResidentMemory,
    Violation,
    blocks_in_use,
    check_blocks,
    check_digests,
    check_nobody_lost,
    check_objects,
    require,
)
from soak_engine_parts.ledger import Ended, Ledger
from soak_engine_parts.orders import Moment, Order, Workload

#: an answer that was computed twice is so many times more likely to be compared
_PREEMPTED_WEIGHT = 5
_DIGESTS_EVERY_STEPS = 32
_MEMORY_SAMPLES = 500
#: looking at every Python object takes a tenth of a second
_OBJECT_COUNTS = 20
_OBJECTS_EVERY_STEPS = 150


@dataclasses.dataclass(frozen=True)
class SoakOptions:
    """How long, and what is still allowed."""

    steps: int = 20_000
    seed: int = 0
    #: after so many steps no more orders are taken until the engine is idle
    drain_every_steps: int = 1500
    #: a request must end within so many steps
    max_queued_steps: int = 5000
    max_growth_bytes: int = 8 << 20
    #: share of the answers that are compared with what the request gets alone
    share_compared: float = 0.06


class InjectedFault(Exception):
    """Raised by :class:`FaultyRunner` in place of a failing operator."""


class FaultyRunner:
    """A runner of which a few steps fail: before anything is computed, or after the cache was written."""

    def __init__(self, runner: Runner, seed: int, share: float = 0.003) -> None:
        self._runner = runner
        self._random = random.Random(seed)
        self._share = share

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        fails = self._random.random() < self._share
        if fails and self._random.random() < 0.5:
            raise InjectedFault("injected before the step")
        tokens = self._runner.execute(plan)
        if fails:
            raise InjectedFault("injected after the step")
        return tokens


@dataclasses.dataclass(frozen=True)
class SoakReport:
    """What happened. ``violation`` is ``None`` where everything held."""

    steps: int
    failed_steps: int
    drains: int
    requests_by_end: dict[str, int]
    refusals: dict[str, int]
    aborts: dict[str, int]
    aborts_of_nobody: int
    tokens: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    compared_alone: int
    compared_alone_preempted: int
    rss_start_bytes: int
    rss_second_fifth_bytes: int
    rss_last_fifth_bytes: int
    objects_at_end: dict[str, int]
    blocks: int
    blocks_in_use_at_end: int
    seconds: float
    violation: str | None


class Soak:
    """One run.

    Args:
        engine: what is soaked; nothing else may use it.
        alone: an engine over the same model with a cache of its own, to which requests are given one at a time for
            comparison; ``None`` where the operators do not promise the same bits.
    """

    def __init__(self, engine: Engine, alone: Engine | None, options: SoakOptions) -> None:
        self._engine = engine
        self._alone = alone
        self._options = options
        self._random = random.Random(options.seed)
        self._workload = Workload(engine.limits, options.seed)
        self._ledger = Ledger(engine.limits, options.max_queued_steps)
        self._memory = ResidentMemory()
        self._baseline = self._objects = ObjectCounts(0, 0)
        self._counts: Counter[str] = Counter()
        self._aborts: Counter[str] = Counter()

    def run(self) -> SoakReport:
        """Step until the number of steps is reached, drain, and check what is left. The first violation ends it."""
        started_s = time.monotonic()
        violation = None
        # a failing step is reported here; its traceback in a log record would keep the requests alive
        log = logging.getLogger("paddle_ds.engine.core")
        was_disabled, log.disabled = log.disabled, True
        try:
            self._baseline = ObjectCounts.now()
            self._run()
        except Violation as found:
            violation = f"step {self._steps}: {found}"
        except Exception:
            violation = f"step {self._steps}: the engine raised\n{traceback.format_exc()}"
        finally:
            log.disabled = was_disabled
        return self._report(time.monotonic() - started_s, violation)

    @property
    def _steps(self) -> int:
        return self._engine.counters.steps + self._engine.counters.failed_steps

    def _run(self) -> None:
        next_drain = self._options.drain_every_steps
        while self._steps < self._options.steps:
            for order in self._workload.arrivals():
                self._add(order)
            self._leave()
            self._step()
            if self._steps >= next_drain:
                self._drain()
                next_drain = self._steps + self._options.drain_every_steps
        self._drain()
        self._memory.check(self._options.max_growth_bytes)

    def _add(self, order: Order) -> None:
        scheduler = self._engine.scheduler
        try:
            self._engine.add(order.request_id, order.prompt, order.params)
        except PaddleDSError as error:
            queue_is_full = isinstance(error, ServerOverloaded) and len(scheduler.waiting) > 0
            self._ledger.refuse(order, error, queue_is_full=queue_is_full)
        else:
            self._ledger.open(order)

    def _leave(self) -> None:
        """Abort requests whose clients leave now, and now and then one that is over already."""
        leaving = {name: where for name in self._ledger.live if (where := self._where_it_leaves(name)) is not None}
        self._aborts.update(leaving.values())
        ends = self._engine.abort(leaving)
        require([end.request.request_id for end in ends] == list(leaving), "an abort did not end its requests once each")
        for end in ends:
            self._close(self._ledger.end(end))
        if self._random.random() < 0.05:
            gone = f"r{self._random.randint(0, 9)}"
            if gone not in self._ledger.live:
                self._counts["aborts_of_nobody"] += 1
                require(not self._engine.abort([gone]), f"an abort ended {gone}, which was over")
        if leaving:
            check_blocks(self._engine.scheduler)

    def _where_it_leaves(self, name: str) -> str | None:
        leaves = self._ledger.live[name].order.leaves
        request = self._engine.scheduler.get(name)
        if leaves is None or request is None or self._random.random() < 0.5:
            return None
        where: Moment = "waiting"
        if request.status is Status.RUNNING:
            where = "decoding" if request.num_output_tokens else "prefilling"
        if where != leaves or (where == "decoding" and self._random.random() < 0.8):
            return None
        return "preempted" if where == "waiting" and request.num_preemptions else where

    def _step(self) -> None:
        had_work, before = self._engine.has_work, self._steps
        require(had_work == bool(self._ledger.live), "the engine and its clients disagree on whether there is work")
        self._take(self._engine.step())
        require(self._steps == before + had_work, "a step with work did nothing, or one without did something")
        self._ledger.age()
        scheduler = self._engine.scheduler
        check_nobody_lost(scheduler, self._ledger.live)
        check_blocks(scheduler)
        if self._steps != before:
            self._look_now_and_then()

    def _look_now_and_then(self) -> None:
        if self._steps % _DIGESTS_EVERY_STEPS == 0:
            check_digests(self._engine.scheduler)
        if self._steps % max(1, self._options.steps // _MEMORY_SAMPLES) == 0:
            self._memory.sample()
        if self._steps % max(_OBJECTS_EVERY_STEPS, self._options.steps // _OBJECT_COUNTS) == 0:
            self._objects = check_objects(self._baseline, len(self._ledger.live))

    def _take(self, progress: Progress) -> None:
        named = [token.request.request_id for token in progress.tokens]
        require(len(set(named)) == len(named), "a request got two tokens in one step")
        for token in progress.tokens:
            self._ledger.token(token)
        for end in progress.ended:
            self._counts["stop_tokens"] += end.reason == "stop"
            self._close(self._ledger.end(end))
        for failure in progress.failed:
            require(": injected " in failure.error.message, f"a step failed by itself: {failure.error}")
            self._close(self._ledger.fail(failure))

    def _close(self, ended: Ended) -> None:
        if ended.reason in ("stop", "length"):
            self._workload.remember(ended.token_ids)
        share = self._options.share_compared * (_PREEMPTED_WEIGHT if ended.num_preemptions else 1)
        if self._alone is not None and self._workload.chance(share):
            self._compare(self._alone, ended)

    def _compare(self, alone: Engine, ended: Ended) -> None:
        """The answer, as far as it came, is the one that the request gets when it has the model to itself."""
        self._counts["compared"] += 1
        self._counts["compared_preempted"] += ended.num_preemptions > 0
        alone.scheduler.pool.forget_all()
        alone.add("alone", ended.order.prompt, ended.order.params)
        answer: list[tuple[int, float | None]] = []
        reason = None
        complete = ended.reason in ("stop", "length")
        while alone.has_work and (complete or len(answer) < len(ended.answer)):
            progress = alone.step()
            require(not progress.failed, f"request {ended.order.request_id} fails alone")
            answer += [(token.sampled.token_id, token.sampled.logprob) for token in progress.tokens]
            reason = next((end.reason for end in progress.ended), None)
        alone.abort(["alone"])
        name = ended.order.request_id
        require(answer == ended.answer, f"request {name} ({ended.reason}) got {ended.answer}; alone it gets {answer}")
        require(not complete or reason == ended.reason, f"request {name} ended by {ended.reason}; alone it ends by {reason}")

    def _drain(self) -> None:
        """No new orders until the engine is idle; then nothing may be in use, and the counters must add up."""
        while self._ledger.live:
            self._leave()
            self._step()
        self._counts["drains"] += 1
        engine = self._engine
        require(not engine.has_work, "the engine has work without requests")
        require(blocks_in_use(engine.scheduler.pool) == 0, f"{blocks_in_use(engine.scheduler.pool)} blocks in use when idle")
        require(engine.scheduler.pool.num_free_blocks == engine.scheduler.pool.num_blocks, "blocks are missing when idle")
        generated = self._ledger.num_tokens + self._counts["stop_tokens"]
        require(
            engine.counters.generation_tokens == generated,
            f"the engine counts {engine.counters.generation_tokens} tokens; {generated} came",
        )
        self._objects = check_objects(self._baseline, 0)

    def _report(self, seconds: float, violation: str | None) -> SoakReport:
        engine, counts = self._engine, self._counts
        scheduler = engine.scheduler
        fields: dict[str, Any] = {
            "steps": self._steps,
            "failed_steps": engine.counters.failed_steps,
            "drains": counts["drains"],
            "requests_by_end": dict(sorted(self._ledger.ends.items())) | {"refused": self._ledger.refusals.total()},
            "refusals": dict(sorted(self._ledger.refusals.items())),
            "aborts": dict(sorted(self._aborts.items())),
            "aborts_of_nobody": counts["aborts_of_nobody"],
            "tokens": self._ledger.num_tokens,
            "preemptions": scheduler.num_preemptions,
            "prefix_query_tokens": scheduler.num_prefix_query_tokens,
            "prefix_hit_tokens": scheduler.num_prefix_hit_tokens,
            "compared_alone": counts["compared"],
            "compared_alone_preempted": counts["compared_preempted"],
            "rss_start_bytes": self._memory.start_bytes,
            "rss_second_fifth_bytes": self._memory.second_fifth_bytes,
            "rss_last_fifth_bytes": self._memory.last_fifth_bytes,
            "objects_at_end": dataclasses.asdict(self._objects),
            "blocks": scheduler.pool.num_blocks,
            "blocks_in_use_at_end": blocks_in_use(scheduler.pool),
        }
        return SoakReport(**fields, seconds=round(seconds, 1), violation=violation)
