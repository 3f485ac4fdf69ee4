"""What a device's failures do to the engine: memory runs out in a step, the device is lost. The model is a fake."""

from __future__ import annotations

from typing import Any

import pytest

from fake_runner import FakeRunner, answer_of
from paddle_ds.config.engine import SchedulerConfig
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.devices.failures import summary, translated, translating
from paddle_ds.engine.core import Engine, Limits, Progress
from paddle_ds.errors import DeviceLost, DeviceNotFound, DeviceOutOfMemory, InvalidRequest
from paddle_ds.sched import BlockPool, SampledToken, Scheduler, StepPlan

OUT_OF_MEMORY = """

--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
0   paddle::experimental::empty(...)

----------------------
Error Message Summary:
----------------------
ResourceExhaustedError:

Out of memory error on npu:0. Cannot allocate 1.000000GB memory on npu:0, available memory is only 0.000000B.

Please check whether there is any other process using npu:0.
1. If yes, please stop them, or start PaddlePaddle on another npu.
 (at ../paddle/phi/core/memory/allocation/custom_allocator.cc:40)
"""


class SmallRunner(FakeRunner):
    """Has memory for so many tokens a step."""

    def __init__(self, most_tokens: int) -> None:
        super().__init__(4)
        self.most_tokens = most_tokens

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        if plan.num_tokens > self.most_tokens:
            raise DeviceOutOfMemory("device npu:0 is out of memory")
        return super().execute(plan)


class LostRunner(FakeRunner):
    def __init__(self, after_steps: int) -> None:
        super().__init__(4)
        self.steps_left = after_steps

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        if self.steps_left == 0:
            raise DeviceLost("device npu:0 has failed")
        self.steps_left -= 1
        return super().execute(plan)


def make_engine(runner: FakeRunner, **config: int) -> Engine:
    limits: dict[str, Any] = {"max_running_requests": 8, "max_waiting_requests": 20, "max_batch_tokens": 32} | config
    scheduler = Scheduler(SchedulerConfig(**limits), BlockPool(64, 4))
    return Engine(scheduler, runner, Limits(100, 8, frozenset()))


def greedy(max_tokens: int = 6) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=0)


def run(engine: Engine, most_steps: int = 2000) -> list[Progress]:
    steps = []
    while engine.has_work:
        assert len(steps) < most_steps, "the engine makes no progress"
        steps.append(engine.step())
    return steps


@pytest.mark.parametrize("most_tokens", [1, 2, 5, 31])
def test_a_step_too_large_for_the_memory_is_divided_and_every_answer_comes_out_the_same(most_tokens: int) -> None:
    engine = make_engine(SmallRunner(most_tokens))
    requests = [engine.add(f"r{i}", [i % 8] * (5 + 7 * i), greedy()) for i in range(6)]
    steps = run(engine)
    for request in requests:
        tokens = [t.sampled.token_id for step in steps for t in step.tokens if t.request is request]
        assert tokens == answer_of(request)
    assert not [failure for step in steps for failure in step.failed]
    assert engine.counters.shrunk_steps > 0
    assert engine.scheduler.pool.num_free_blocks == 64


def test_a_request_whose_single_token_does_not_fit_gets_its_error_and_the_engine_lives() -> None:
    runner = SmallRunner(0)
    engine = make_engine(runner)
    engine.add("a", [1, 2, 3], greedy())
    failed = [failure for step in run(engine) for failure in step.failed]
    assert [(failure.request.request_id, failure.error.code) for failure in failed] == [("a", "device_out_of_memory")]
    runner.most_tokens = 32
    again = engine.add("b", [1, 2, 3], greedy())
    tokens = [t.sampled.token_id for step in run(engine) for t in step.tokens]
    assert tokens == answer_of(again)


def test_a_step_that_was_made_smaller_grows_again_when_all_goes_well() -> None:
    runner = SmallRunner(4)
    engine = make_engine(runner)
    engine.add("a", [1] * 20, greedy(70))
    run(engine)
    assert engine.scheduler.max_batch_tokens <= 4
    runner.most_tokens = 32
    for index in range(20):
        engine.add(f"b{index}", [1] * 2, greedy(60))
        run(engine)
    assert (engine.scheduler.max_batch_tokens, engine.scheduler.max_running_requests) == (32, 8)


def test_fewer_requests_run_where_a_step_cannot_hold_a_token_of_each() -> None:
    engine = make_engine(SmallRunner(3))
    for index in range(8):
        engine.add(f"r{index}", [index], greedy())
    steps = run(engine)
    assert engine.scheduler.max_running_requests <= 3
    assert sum(len(step.ended) for step in steps) == 8


def test_a_lost_device_ends_every_request_with_its_reason_and_takes_no_more() -> None:
    engine = make_engine(LostRunner(2), max_running_requests=2)
    for index in range(5):
        engine.add(f"r{index}", [index, 1], greedy())
    steps = [engine.step() for _ in range(3)]
    failed = {failure.request.request_id: failure.error.code for failure in steps[-1].failed}
    assert failed == {f"r{index}": "device_lost" for index in range(5)}
    assert not engine.has_work
    with pytest.raises(DeviceLost, match="npu:0 has failed"):
        engine.add("late", [1], greedy())


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RuntimeError(OUT_OF_MEMORY), DeviceOutOfMemory, "Cannot allocate 1.000000GB memory on npu:0"),
        (MemoryError(), DeviceOutOfMemory, "an allocation failed"),
        (MemoryError("std::bad_alloc"), DeviceOutOfMemory, "bad_alloc"),
        (OSError("(External)  CustomDevice error, the error code is : 2.  (at x.cc:1)"), DeviceOutOfMemory, "code is : 2"),
        (OSError("(External) CustomDevice error, the error code is : 3"), DeviceLost, "the error code is : 3"),
        (RuntimeError("(External) CUDA error(700), an illegal memory access was encountered."), DeviceLost, "CUDA error"),
    ],
)
def test_what_paddle_raises_is_told_apart(error: Exception, kind: type[Exception], text: str) -> None:
    known = translated(error, "npu:0")
    assert type(known) is kind
    assert "npu:0" in str(known)
    assert text in str(known)


@pytest.mark.parametrize("error", [ValueError("shapes differ"), InvalidRequest("no"), KeyError("x")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert translated(error, "npu:0") is None
    with pytest.raises(type(error)), translating("npu:0"):
        raise error


def test_an_error_of_ours_is_not_wrapped() -> None:
    error = DeviceNotFound("not here")
    with pytest.raises(DeviceNotFound) as caught, translating("npu:0"):
        raise error
    assert caught.value is error


def test_a_summary_has_no_stack_and_no_advice() -> None:
    text = summary(OUT_OF_MEMORY)
    assert text.startswith("ResourceExhaustedError")
    assert "Traceback" not in text
    assert "Please check" not in text
