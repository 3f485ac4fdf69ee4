"""``tools/soak_engine.py``: a short soak finds nothing, and planted defects are found for what they are."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import soak_engine
from soak_engine_parts.soak import SoakOptions

from paddle_ds.config.engine import EngineConfig
from paddle_ds.engine.build import LoadedModel, load
from paddle_ds.kernels import native
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.sched import BlockPool, Request, RequestEnd, SampledToken, Scheduler, StepOutput, StepPlan
from paddle_ds.sched.plan import EndReason

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

SCRIPT = Path(soak_engine.__file__)
#: enough for every defect below to be met
OPTIONS = SoakOptions(steps=250, seed=1, drain_every_steps=120, share_compared=0.5)


@dataclasses.dataclass(frozen=True)
class Models:
    """The same model twice: one to soak, one to compare with."""

    soaked: LoadedModel
    alone: LoadedModel


@pytest.fixture(scope="module")
def models() -> Models:
    config = soak_engine.small(EngineConfig())
    return Models(load(config), load(soak_engine.roomy(config)))


def test_a_short_soak_finds_nothing() -> None:
    command = [sys.executable, str(SCRIPT), "--steps", "300", "--seed", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["violation"] is None
    assert report["steps"] >= 300
    assert report["blocks_in_use_at_end"] == 0
    # it has been through what it is there for
    assert {"abort", "length", "stop", "refused"} <= {end for end, count in report["requests_by_end"].items() if count}
    assert all(report[name] > 0 for name in ("preemptions", "prefix_hit_tokens", "compared_alone", "tokens", "drains"))


def test_an_odd_shape_is_soaked_too(tmp_path: Path) -> None:
    soak_engine.make_odd_model(tmp_path, seed=0)
    config = soak_engine.small(EngineConfig(model=str(tmp_path)))
    report = soak_engine.soak(load(config), load(soak_engine.roomy(config)), OPTIONS)
    assert report.violation is None
    assert report.compared_alone > 0


def test_equal_seeds_give_equal_runs(models: Models) -> None:
    options = dataclasses.replace(OPTIONS, steps=60, share_compared=0.0)
    figures = [soak_engine.soak(models.soaked, models.alone, options) for _ in range(2)]
    assert (
        len({(report.steps, str(report.requests_by_end), report.preemptions, report.prefix_hit_tokens) for report in figures})
        == 1
    )


class ForgetfulPool(BlockPool):
    """Does not free the last block of a long list."""

    def free(self, blocks: Sequence[int]) -> None:
        super().free(blocks[:-1] if len(blocks) > 8 else blocks)


class ConfusedPool(BlockPool):
    """Remembers a block under the digest of another."""

    def remember(self, block: int, digest: bytes) -> None:
        super().remember(block, digest[::-1])


class LosingScheduler(Scheduler):
    """Forgets whom it has preempted."""

    def _preempt(self, request: Request) -> None:
        super()._preempt(request)
        self.waiting.remove(request)


class RepeatingScheduler(Scheduler):
    """Reports an end in the step after it once more."""

    _last: list[RequestEnd]

    def update(self, plan: StepPlan, tokens: Sequence[SampledToken]) -> StepOutput:
        output = super().update(plan, tokens)
        ended = list(output.ended)
        output.ended.extend(getattr(self, "_last", []))
        self._last = ended
        return output


class HoardingScheduler(Scheduler):
    """Keeps every request that has ended."""

    def _end(self, request: Request, reason: EndReason, stop_token_id: int | None = None) -> RequestEnd:
        self.hoard: list[Request] = [*getattr(self, "hoard", []), request]
        return super()._end(request, reason, stop_token_id)


class StarvingScheduler(Scheduler):
    """Never lets the first request that arrives run."""

    def schedule(self) -> StepPlan:
        starved = [request for request in self.waiting if request.request_id == "r1"]
        for request in starved:
            self.waiting.remove(request)
        plan = super().schedule()
        self.waiting.extend(starved)
        return plan


class BreakingScheduler(Scheduler):
    """Trips over its own assertion."""

    def _preempt(self, request: Request) -> None:
        raise AssertionError("planted")


DEFECTS: dict[str, tuple[type[Scheduler], type[BlockPool], str]] = {
    "leaked block": (Scheduler, ForgetfulPool, "users; 0 requests hold it"),
    "wrong digest": (Scheduler, ConfusedPool, "known by the digest of other tokens"),
    "lost request": (LosingScheduler, BlockPool, "neither ended nor queued"),
    "second end": (RepeatingScheduler, BlockPool, "which is over or was never accepted"),
    "hoarded requests": (HoardingScheduler, BlockPool, "Request objects for"),
    "starved request": (StarvingScheduler, BlockPool, "a step with work did nothing"),
    "crash": (BreakingScheduler, BlockPool, "AssertionError: planted"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_of_the_scheduler_is_found(models: Models, defect: str) -> None:
    scheduler, pool, words = DEFECTS[defect]
    plan = models.soaked.plan
    planted = scheduler(soak_engine.SCHEDULER, pool(plan.num_blocks, plan.block_tokens))
    report = soak_engine.soak(models.soaked, models.alone, OPTIONS, planted)
    assert report.violation is not None
    assert words in report.violation


def test_a_request_that_takes_too_long_is_found(models: Models) -> None:
    report = soak_engine.soak(models.soaked, models.alone, dataclasses.replace(OPTIONS, max_queued_steps=20))
    assert "has not ended in 21 steps" in (report.violation or "")


class Runner:
    """A real runner with something done to each step."""

    def __init__(self, runner: ModelRunner, spoil: Callable[[StepPlan, list[SampledToken]], list[SampledToken]]) -> None:
        self._runner, self._spoil = runner, spoil

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        return self._spoil(plan, self._runner.execute(plan))


def soak_with(models: Models, spoil: Callable[[StepPlan, list[SampledToken]], list[SampledToken]], options: SoakOptions) -> str:
    runner: Any = Runner(models.soaked.runner, spoil)
    report = soak_engine.soak(dataclasses.replace(models.soaked, runner=runner), models.alone, options)
    return report.violation or ""


def test_tokens_that_depend_on_the_company_are_found(models: Models) -> None:
    def spoil(plan: StepPlan, tokens: list[SampledToken]) -> list[SampledToken]:
        if len(plan.chunks) < 5 or not tokens:
            return tokens
        return [dataclasses.replace(tokens[0], token_id=7), *tokens[1:]]

    assert "alone it gets" in soak_with(models, spoil, OPTIONS)


def test_growing_memory_is_found(models: Models) -> None:
    kept: list[bytes] = []

    def spoil(plan: StepPlan, tokens: list[SampledToken]) -> list[SampledToken]:
        kept.append(b"x" * (1 << 20))
        return tokens

    assert "resident memory grew by" in soak_with(models, spoil, OPTIONS)


def test_a_step_that_fails_by_itself_is_found(models: Models) -> None:
    def spoil(plan: StepPlan, tokens: list[SampledToken]) -> list[SampledToken]:
        if any(chunk.context_tokens > 40 for chunk in plan.chunks):
            raise RuntimeError("planted")
        return tokens

    assert "a step failed by itself: the step failed: planted" in soak_with(models, spoil, OPTIONS)
