"""``Engine`` over a fake model: checks, failures, counters."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from fake_runner import FakeRunner, answer_of
from paddle_ds.config.engine import SchedulerConfig
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.engine.core import Engine, Limits, Progress, boot_id
from paddle_ds.errors import InternalError, InvalidRequest, KernelError, PromptTooLong, ServerOverloaded
from paddle_ds.sched import BlockPool, Scheduler, Status


def make_engine(
    *, num_blocks: int = 16, context: int = 40, eos: tuple[int, ...] = (), **config: int
) -> tuple[Engine, FakeRunner]:
    runner = FakeRunner(block_tokens=4)
    limits = {"max_running_requests": 4, "max_waiting_requests": 6, "max_batch_tokens": 16} | config
    scheduler = Scheduler(SchedulerConfig(**limits), BlockPool(num_blocks, 4))
    return Engine(scheduler, runner, Limits(context, 8, frozenset(eos)), clock=lambda: 5.0), runner


def greedy(**options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 4, "seed": 0, **options})


def run(engine: Engine) -> list[Progress]:
    steps = []
    while engine.has_work:
        steps.append(engine.step())
    return steps


def test_a_request_runs_to_its_end() -> None:
    engine, _ = make_engine()
    request = engine.add("a", [1, 2, 3], greedy())
    steps = run(engine)
    assert [token.sampled.token_id for step in steps for token in step.tokens] == answer_of(request)
    assert [(end.request, end.reason) for step in steps for end in step.ended] == [(request, "length")]
    assert request.arrival_s == 5.0


def test_an_idle_step_does_nothing() -> None:
    engine, runner = make_engine()
    assert engine.step() == Progress()
    assert (runner.plans, engine.counters.steps) == ([], 0)


def test_without_max_tokens_the_answer_may_fill_the_context() -> None:
    engine, _ = make_engine(context=20)
    assert engine.add("a", [1] * 15, greedy(max_tokens=None)).max_new_tokens == 5


@pytest.mark.parametrize(
    ("length", "max_tokens", "message"),
    [
        (20, None, "20 tokens; the prompt has 20 tokens. "),
        (25, 1, "prompt has 25"),
        (15, 6, "prompt has 15 tokens and max_tokens asks for 6"),
    ],
)
def test_a_prompt_that_leaves_no_room_is_refused(length: int, max_tokens: int | None, message: str) -> None:
    engine, _ = make_engine(context=20)
    with pytest.raises(PromptTooLong, match=message):
        engine.add("a", [1] * length, greedy(max_tokens=max_tokens))
    assert not engine.has_work


def test_prompt_and_answer_may_be_as_long_as_the_context() -> None:
    engine, _ = make_engine(context=20)
    engine.add("a", [1] * 19, greedy(max_tokens=None))
    engine.add("b", [1] * 15, greedy(max_tokens=5))


def test_an_empty_prompt_is_refused() -> None:
    engine, _ = make_engine()
    with pytest.raises(InvalidRequest, match="no tokens") as caught:
        engine.add("a", [], greedy())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("token_id", [-1, 8, 10**30])
@pytest.mark.parametrize("param", ["prompt", "stop_token_ids", "logit_bias"])
def test_ids_that_do_not_exist_are_refused_by_field(token_id: int, param: str) -> None:
    engine, _ = make_engine()
    options = {"stop_token_ids": {"stop_token_ids": (1, token_id)}, "logit_bias": {"logit_bias": {token_id: 1.0}}}
    prompt = [0, 7, token_id] if param == "prompt" else [0, 7]
    with pytest.raises(InvalidRequest, match=f"{param} holds token id {token_id}; this model has ids 0 to 7") as caught:
        engine.add("a", prompt, greedy(**options.get(param, {})))
    assert caught.value.param == param
    assert not engine.has_work


def test_a_refused_request_leaves_its_id_free() -> None:
    engine, _ = make_engine()
    with pytest.raises(InvalidRequest):
        engine.add("a", [99], greedy())
    engine.add("a", [1], greedy())


def test_a_full_queue_is_refused() -> None:
    engine, _ = make_engine(max_waiting_requests=1)
    engine.add("a", [1], greedy())
    with pytest.raises(ServerOverloaded):
        engine.add("b", [1], greedy())


@pytest.mark.parametrize(
    ("options", "end_ids"),
    [
        ({}, {5, 6}),
        ({"stop_token_ids": (1,)}, {1, 5, 6}),
        ({"ignore_eos": True}, set()),
        ({"ignore_eos": True, "stop_token_ids": (5,)}, {5}),
    ],
)
def test_what_ends_an_answer(options: dict[str, Any], end_ids: set[int]) -> None:
    engine, _ = make_engine(eos=(5, 6))
    assert engine.add("a", [1], greedy(**options)).end_ids == end_ids


def test_a_seed_is_kept_and_picked_where_there_is_none() -> None:
    engine, _ = make_engine()
    assert engine.add("a", [1], greedy(seed=-7)).seed == -7
    picked = {engine.add(name, [1], greedy(seed=None)).seed for name in "bcde"}
    assert len(picked) == 4


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KernelError("broken"), MemoryError(), AssertionError("ours")])
def test_a_failing_step_ends_its_requests_and_frees_their_blocks(error: Exception) -> None:
    engine, runner = make_engine(max_running_requests=2)
    inside = [engine.add(name, [1, 2], greedy()) for name in "ab"]
    engine.add("waiting", [1, 2], greedy())
    engine.step()
    runner.fail = error
    progress = engine.step()
    assert [failure.request for failure in progress.failed] == inside
    assert (progress.tokens, progress.ended) == ([], [])
    assert {request.status for request in inside} == {Status.FINISHED}
    assert engine.scheduler.pool.num_free_blocks == 16
    assert [end.request.request_id for step in run(engine) for end in step.ended] == ["waiting"]


def test_a_failure_of_ours_keeps_its_class_and_others_become_internal() -> None:
    engine, runner = make_engine()
    for error, expected in ((KernelError("broken"), KernelError), (ValueError("odd"), InternalError)):
        engine.add("a", [1], greedy())
        runner.fail = error
        assert type(engine.step().failed[0].error) is expected


def test_a_failing_step_is_logged_with_its_requests(caplog: pytest.LogCaptureFixture) -> None:
    engine, runner = make_engine()
    engine.add("a", [1], greedy())
    runner.fail = ValueError("odd")
    logger = logging.getLogger("paddle_ds.engine.core")
    logger.addHandler(caplog.handler)
    engine.step()
    logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"step.failed"}


def test_an_abort_frees_blocks_before_the_next_step() -> None:
    engine, _ = make_engine()
    engine.add("a", [1] * 9, greedy())
    engine.step()
    assert [end.reason for end in engine.abort(["a", "unknown"])] == ["abort"]
    assert engine.scheduler.pool.num_free_blocks == 16


def test_counters_count_each_prompt_and_token_once() -> None:
    engine, runner = make_engine(num_blocks=4, max_batch_tokens=4)
    engine.add("old", [1] * 7, greedy(max_tokens=6))
    engine.add("new", [2] * 6, greedy(max_tokens=6))
    run(engine)
    assert engine.scheduler.num_preemptions > 0
    assert (engine.counters.prompt_tokens, engine.counters.generation_tokens) == (13, 12)
    assert (engine.counters.steps, engine.counters.failed_steps) == (len(runner.plans), 0)


def test_failed_steps_are_counted_apart() -> None:
    engine, runner = make_engine()
    engine.add("a", [1], greedy())
    runner.fail = ValueError()
    engine.step()
    assert (engine.counters.steps, engine.counters.failed_steps, engine.counters.prompt_tokens) == (0, 1, 0)


def test_every_start_has_a_name_of_its_own() -> None:
    assert boot_id() != boot_id()
