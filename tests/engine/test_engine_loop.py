"""The loop of the engine process: messages in, frames out. The model and the transport are fakes, and there are no threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fake_runner import FakeRunner
from paddle_ds.config.engine import SchedulerConfig
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.engine.core import Engine, Limits
from paddle_ds.engine.process import EngineLoop
from paddle_ds.ipc.messages import Abort, Delta, EngineInfo, Failed, Finished, Stats, Step, Submit
from paddle_ds.ipc.server import FromWorker, WorkerGone
from paddle_ds.sched import BlockPool, SampledToken, Scheduler, StepPlan

#: in a script: the loop finds no further message now, and steps
STEP = None


class FakeServer:
    """Feeds a script to the loop and keeps what it sends. Ends the loop when there is nothing left to do."""

    def __init__(self, script: list[FromWorker | WorkerGone | None], engine: Engine, stop: threading.Event) -> None:
        self._script = script
        self._engine = engine
        self._stop = stop
        self.sent: list[tuple[bytes, Step]] = []
        self.stats: list[Stats] = []
        self.stop_early = False
        self.num_bad_frames = 3

    def receive(self, timeout_s: float | None = None) -> FromWorker | WorkerGone | None:
        if self._script:
            return self._script.pop(0)
        if self.stop_early or not self._engine.has_work:
            self._stop.set()
        return None

    def send(self, client: bytes, message: Step) -> None:
        self.sent.append((client, message))

    def broadcast(self, message: EngineInfo | Stats) -> None:
        assert isinstance(message, Stats)
        self.stats.append(message)

    def of(self, client: bytes = b"w") -> list[Delta | Finished | Failed]:
        """Everything one worker got, in order."""
        frames = [frame for receiver, frame in self.sent if receiver == client]
        return [event for frame in frames for event in (*frame.deltas, *frame.finished, *frame.failed)]

    def ends(self, client: bytes = b"w") -> dict[str, str]:
        """Request -> reason or error code."""
        ends = [event for event in self.of(client) if not isinstance(event, Delta)]
        assert len({end.request_id for end in ends}) == len(ends), "a request ended twice"
        return {end.request_id: end.error.code if isinstance(end, Failed) else end.reason for end in ends}


class LogprobRunner(FakeRunner):
    """Reports log probabilities, as the sampler does where a request asks for them."""

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        return [SampledToken(token.token_id, -0.5, ((token.token_id, -0.5), (0, -2.0))) for token in super().execute(plan)]


def make_engine(runner: FakeRunner | None = None) -> Engine:
    scheduler = Scheduler(SchedulerConfig(4, 8, 16), BlockPool(64, 4))
    return Engine(scheduler, runner or FakeRunner(4), Limits(100, 8, frozenset({7})))


def run(script: list[FromWorker | WorkerGone | None], engine: Engine | None = None, *, stop_early: bool = False) -> FakeServer:
    engine = engine or make_engine()
    stop = threading.Event()
    server = FakeServer(script, engine, stop)
    server.stop_early = stop_early
    EngineLoop(server, engine, stop, {"op": 1}).run()  # type: ignore[arg-type]
    assert not engine.has_work
    assert engine.scheduler.pool.num_free_blocks == 64
    return server


def submit(name: str = "a", prompt: tuple[int, ...] = (1, 2, 3), client: bytes = b"w", **params: Any) -> FromWorker:
    options = {"temperature": 0.0, "max_tokens": 5, "ignore_eos": True, "seed": 0, **params}
    return FromWorker(client, Submit(name, list(prompt), SamplingParams(**options)))


def abort(*names: str, client: bytes = b"w") -> FromWorker:
    return FromWorker(client, Abort(list(names)))


def test_a_request_gets_its_tokens_its_end_and_its_bill() -> None:
    *deltas, end = run([submit()]).of()
    assert [len(delta.token_ids) for delta in deltas if isinstance(delta, Delta)] == [1] * 5
    assert isinstance(end, Finished)
    assert (end.reason, end.stop_token_id) == ("length", None)
    assert (end.usage.num_prompt_tokens, end.usage.num_output_tokens) == (3, 5)
    assert 0 <= end.usage.queue_s <= end.usage.first_token_s <= end.usage.total_s


def test_an_end_id_is_named_and_is_no_delta() -> None:
    (end,) = run([submit(stop_token_ids=tuple(range(8)))]).of()
    assert isinstance(end, Finished)
    assert end.reason == "stop"
    assert end.stop_token_id in range(8)


def test_log_probabilities_are_passed_on() -> None:
    delta = run([submit(logprobs=2)], make_engine(LogprobRunner(4))).of()[0]
    assert isinstance(delta, Delta)
    assert delta.logprobs is not None
    assert (delta.logprobs[0].logprob, len(delta.logprobs[0].top)) == (-0.5, 2)


def test_a_worker_gets_one_frame_a_step_and_its_own_tokens_only() -> None:
    server = run([submit("a", client=b"v"), submit("b", client=b"w"), submit("c", client=b"w")])
    assert {event.request_id for event in server.of(b"v")} == {"a"}
    assert {event.request_id for event in server.of(b"w")} == {"b", "c"}
    assert [client for client, _ in server.sent] == [b"v", b"w"] * 5


def test_a_refused_request_fails_with_the_reason_and_others_go_on() -> None:
    server = run([submit("long", (1,) * 100), submit("odd", (99,)), submit("empty", ()), submit("good")])
    assert server.ends() == {
        "long": "context_length_exceeded",
        "odd": "invalid_request",
        "empty": "invalid_request",
        "good": "length",
    }


def test_a_full_queue_fails_what_is_too_many() -> None:
    ends = run([submit(str(number)) for number in range(10)]).ends()
    assert [number for number, end in ends.items() if end == "server_overloaded"] == ["8", "9"]
    assert len(ends) == 10


def test_an_id_in_use_fails_the_second_request() -> None:
    server = run([submit("same", client=b"v"), STEP, submit("same", client=b"w")])
    assert (server.ends(b"v"), server.ends(b"w")) == ({"same": "length"}, {"same": "internal_error"})


def test_an_id_may_be_used_again_once_it_is_over() -> None:
    script = [submit("same", client=b"v"), *[STEP] * 7, submit("same", client=b"w")]
    server = run(script)
    assert (server.ends(b"v"), server.ends(b"w")) == ({"same": "length"}, {"same": "length"})


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_aborted_request_ends_once(steps: int) -> None:
    server = run([submit(), *[STEP] * steps, abort("a", "a", "unknown"), abort("a")])
    assert server.ends() == {"a": "abort"}
    assert len(server.of()) == steps + 1


def test_an_abort_that_comes_too_late_changes_nothing() -> None:
    assert run([submit(), *[STEP] * 7, abort("a")]).ends() == {"a": "length"}


def test_requests_of_a_worker_that_left_are_dropped_and_others_go_on() -> None:
    server = run([submit("theirs", client=b"v", max_tokens=90), submit("mine"), STEP, WorkerGone(b"v")])
    assert server.ends(b"w") == {"mine": "length"}
    assert server.ends(b"v") == {"theirs": "abort"}
    assert len(server.of(b"v")) == 2


def test_a_worker_without_requests_may_leave() -> None:
    assert run([WorkerGone(b"v"), WorkerGone(b"v")]).sent == []


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on() -> None:
    engine = make_engine(runner := FakeRunner(4))
    runner.fail = RuntimeError("broken")
    server = run([submit("a", client=b"v"), submit("b"), STEP, submit("c")], engine)
    assert (server.ends(b"v"), server.ends(b"w")) == ({"a": "internal_error"}, {"b": "internal_error", "c": "length"})


def test_what_still_runs_when_the_engine_stops_fails_with_a_reason() -> None:
    requests = [submit(str(number), max_tokens=50) for number in range(6)]
    server = run([*requests, STEP, STEP], stop_early=True)
    assert server.ends() == {str(number): "engine_unavailable" for number in range(6)}


def test_figures_are_published() -> None:
    stats = run([submit()]).stats[0]
    assert (stats.num_blocks, stats.num_free_blocks, stats.num_running, stats.num_waiting) == (64, 63, 1, 0)
    assert (stats.prompt_tokens_total, stats.generation_tokens_total, stats.steps_total) == (3, 1, 1)
    assert (stats.preemptions_total, stats.fallback_ops, stats.bad_frames_total) == (0, {"op": 1}, 3)
    assert stats.rss_bytes > 0
