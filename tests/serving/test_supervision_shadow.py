"""A new engine is asked what the current one has answered, and what comes of it decides."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engine_world import World, running_world
from fake_engine import End, Fail, FakeEngine, Gate, Script, ready_info, say
from gunicorn_process import eventually
from tiny_tokenizer import write_tokenizer

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import (
    EngineDied,
    EngineUnavailable,
    InternalError,
    InvalidRequest,
    MemoryPlanError,
    ServerOverloaded,
    ShadowMismatchError,
    TokenizerError,
)
from paddle_ds.text import Tokenizer
from paddle_ds_serving.supervision import control, pointer
from paddle_ds_serving.supervision.control import ControlServer
from paddle_ds_serving.supervision.operations import operations
from paddle_ds_serving.supervision.shadow import Answered, Replayed, Report, ShadowPlan, ShadowResult, Tally, agreement, judge
from paddle_ds_serving.supervision.shadow_replay import Comparison, check_same_tokens

FAKE_ANSWER = "Let me think</think>Hello world"


def answered(tokens: list[int], first_token_s: float = 0.1, total_s: float = 1.0, stop: int | None = None) -> Answered:
    return Answered([1, 2], SamplingParams(), tokens, stop, first_token_s, total_s)


@pytest.mark.parametrize(
    ("old", "new", "share"),
    [
        ([[1, 2, 3, 4]], [[1, 2, 3, 4]], 1.0),
        ([[1, 2, 3, 4]], [[1, 2, 9, 4]], 0.75),
        ([[1, 2]], [[1, 2, 3, 4]], 0.5),
        ([[1, 2, 3, 4]], [[1]], 0.25),
        ([[1]], [[]], 0.0),
        ([[]], [[]], 1.0),
        ([[1, 2], [3, 4, 5, 6, 7, 8]], [[1, 2], [9, 9, 9, 9, 9, 9]], 0.25),
    ],
    ids=["same", "one-differs", "new-is-longer", "new-is-shorter", "new-is-empty", "both-are-empty", "two-answers"],
)
def test_agreement_is_the_share_of_positions_up_to_the_longer_answer(old: Any, new: Any, share: float) -> None:
    assert agreement(old, new) == share


def test_the_token_that_ends_an_answer_is_one_of_its_tokens() -> None:
    tally = Tally(ShadowPlan(10, 2))
    tally.add([answered([5], stop=7)], [Replayed([5, 7], 0.1, 1.0)])
    tally.add([answered([5], stop=7)], [Replayed([5, 8], 0.1, 1.0)])
    assert (tally.result().agreement, tally.result().identical) == (0.75, 1)


def test_each_request_weighs_the_same_and_a_failure_agrees_in_nothing() -> None:
    tally = Tally(ShadowPlan(10, 3))
    tally.add([answered([5] * 1000)], [Replayed([5] * 1000, 0.1, 1.0)])
    tally.add([answered([5, 6])], [Replayed([5, 9], 0.1, 1.0)])
    tally.add([answered([5])], None)
    result = tally.result()
    assert (result.compared, result.identical, result.failed, result.agreement) == (3, 1, 1, 0.5)


def test_times_are_of_the_first_token_and_the_last_answer_of_a_request() -> None:
    tally = Tally(ShadowPlan(10, 20))
    for i in range(1, 21):
        old = [answered([5], i / 10, float(i)), answered([5], i / 10 + 0.05, i - 0.5)]
        tally.add(old, [Replayed([5], 0.5, 2.0), Replayed([5], 0.7, 3.0)])
    first, total = tally.result().first_token_s, tally.result().total_s
    assert first is not None
    assert total is not None
    assert (first.old.median, first.old.p95, first.new.median, first.new.p95) == (1.0, 1.9, 0.5, 0.5)
    assert (total.old.median, total.old.p95, total.new.median, total.new.p95) == (10.0, 19.0, 3.0, 3.0)


def result(compared: int, share: float | None) -> ShadowResult:
    return ShadowResult(10, compared, 0, 0, 0, share, None, None)


def test_the_least_agreement_is_enough_and_less_is_not() -> None:
    plan = ShadowPlan(10, 10, min_agreement=0.9)
    judge(plan, result(10, 0.9))
    with pytest.raises(ShadowMismatchError, match=r"in 0\.8990 of their tokens; min_agreement is 0\.9"):
        judge(plan, result(10, 0.899))
    with pytest.raises(ShadowMismatchError, match="only 9 of 10"):
        judge(plan, result(9, 1.0))
    judge(ShadowPlan(10, 10), result(0, None))


@pytest.mark.parametrize(
    ("question", "param"),
    [
        ({"shadow": 0}, "shadow"),
        ({"shadow": 100.5}, "shadow"),
        ({"shadow": "10"}, "shadow"),
        ({"shadow": True}, "shadow"),
        ({"shadow": float("nan")}, "shadow"),
        ({"shadow": 10, "shadow_requests": 0}, "shadow_requests"),
        ({"shadow": 10, "shadow_requests": 1.5}, "shadow_requests"),
        ({"shadow": 10, "shadow_limit_s": -1}, "shadow_limit_s"),
        ({"shadow": 10, "min_agreement": 90}, "min_agreement"),
        ({"min_agreement": 0.9}, "min_agreement"),
        ({"shadow_requests": 5}, "shadow_requests"),
    ],
    ids=repr,
)
def test_a_wrong_value_is_refused_by_name(question: Any, param: str) -> None:
    with pytest.raises(InvalidRequest, match=param) as refused:
        ShadowPlan.read(question)
    assert refused.value.param == param


def test_a_plan_is_read_with_its_defaults() -> None:
    assert ShadowPlan.read({"path": "/models/new", "shadow": None}) is None
    assert ShadowPlan.read({"shadow": 10}) == ShadowPlan(10, 50, 300.0, None)
    asked = {"shadow": 2.5, "shadow_requests": 3, "shadow_limit_s": 4, "min_agreement": 1}
    assert ShadowPlan.read(asked) == ShadowPlan(2.5, 3, 4, 1)


class Joining:
    """A comparison with an engine that answers from a script, and reports for it."""

    def __init__(self, tokenizer_dir: Path, script: Script, *, burst: bool = True, **plan: Any) -> None:
        self.engine = FakeEngine(tokenizer_dir, script, burst=burst)
        self.comparison = Comparison(ShadowPlan(10, **plan), "engine-2.sock", self.engine)

    def offer(self, num: int = 1, **more: Any) -> None:
        for _ in range(num):
            self.comparison.offer(Report(**{"session": "engine-2.sock", "answers": [answered([5]), answered([6])], **more}))

    def counts(self) -> tuple[int, int, int]:
        """Compared, failed, missed."""
        result = self.comparison.result()
        return result.compared, result.failed, result.missed


@pytest.fixture
def join(tokenizer_dir: Path) -> Iterator[Callable[..., Joining]]:
    made: list[Joining] = []

    def make(*script: Any, **plan: Any) -> Joining:
        made.append(Joining(tokenizer_dir, script[0] if callable(script[0]) else say(*script), **plan))
        return made[-1]

    yield make
    for joining in made:
        joining.comparison.close()
        joining.engine.close()


def test_all_answers_of_a_request_are_asked_for_together(join: Callable[..., Joining]) -> None:
    joining = join([5], num_requests=1)
    joining.offer()
    assert eventually(lambda: joining.comparison.done)
    # the engine that joins ends with a token, the answers do not have it: 1 of 2 positions, and 0 of 2
    assert joining.comparison.result().agreement == 0.25
    assert [submit.prompt_ids for submit in joining.engine.actor.submitted] == [[1, 2], [1, 2]]


def test_what_the_new_engine_fails_with_counts(join: Callable[..., Joining]) -> None:
    joining = join(Fail(InternalError("it quotes: Hello")), num_requests=2)
    joining.offer(2)
    assert eventually(lambda: joining.comparison.done)
    assert (joining.counts(), joining.comparison.result().agreement) == ((2, 2, 0), 0.0)


@pytest.mark.parametrize(
    "line", [Fail(ServerOverloaded("busy")), Fail(EngineDied("gone")), End("abort")], ids=["busy", "dead", "stopping"]
)
def test_an_engine_that_is_busy_or_gone_says_nothing_of_its_model(join: Callable[..., Joining], line: Any) -> None:
    joining = join(line, num_requests=1)
    joining.offer(num_missed=5)
    assert eventually(lambda: joining.counts() == (0, 0, 6))
    joining.engine.actor.script = say([5])
    joining.offer()  # it takes the place of the one that was missed
    assert eventually(lambda: joining.counts() == (1, 0, 6))


def test_only_so_many_run_and_wait(join: Callable[..., Joining]) -> None:
    gate = threading.Event()
    joining = join(Gate(gate), [5], burst=False, num_requests=50)
    joining.offer(session="engine-1.sock", num_missed=99)
    joining.offer(4)
    assert eventually(lambda: len(joining.engine.actor.submitted) == 8)
    joining.offer(20)
    assert joining.counts() == (0, 0, 4)
    assert len(joining.engine.actor.submitted) == 8
    gate.set()
    assert eventually(lambda: joining.counts() == (20, 0, 4))


def test_no_more_are_taken_than_asked_for_and_the_slow_ones_are_waited_for(join: Callable[..., Joining]) -> None:
    gate = threading.Event()
    slow = iter([True])
    joining = join(lambda request: [Gate(gate), [5]] if next(slow, False) else [[5]], burst=False, num_requests=3)
    joining.offer(10)
    assert eventually(lambda: joining.counts()[0] == 2)
    assert not joining.comparison.done
    gate.set()
    assert eventually(lambda: joining.counts() == (3, 0, 0))


def test_when_it_is_over_what_runs_is_aborted(join: Callable[..., Joining]) -> None:
    joining = join(Gate(threading.Event()), burst=False, num_requests=3, limit_s=0.01)
    joining.offer()
    assert eventually(lambda: joining.comparison.done and len(joining.engine.actor.submitted) == 2)
    joining.comparison.close()
    assert eventually(lambda: len(joining.engine.actor.aborted) == 2)
    assert joining.counts()[0] == 0


def test_another_vocabulary_cannot_be_compared(tmp_path: Path) -> None:
    old, new = (write_tokenizer(tmp_path / name) for name in ("old", "new"))
    models = [ready_info(directory).model for directory in (old, new)]
    tokenizer = json.loads((new / "tokenizer.json").read_text())
    (new / "tokenizer.json").write_text(json.dumps(tokenizer, indent=4))
    check_same_tokens(*models)  # type: ignore[arg-type]
    vocab = tokenizer["model"]["vocab"]
    vocab["2"], vocab["4"] = vocab["4"], vocab["2"]
    (new / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ShadowMismatchError, match="another vocabulary"):
        check_same_tokens(*models)  # type: ignore[arg-type]
    (new / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        check_same_tokens(*models)  # type: ignore[arg-type]


class Live(World):
    """A world with a control socket; :meth:`load` has traffic while it compares."""

    def ask(self, op: str, **arguments: Any) -> Any:
        return control.ask(self.run_dir / control.FILE_NAME, op, timeout_s=60, **arguments)

    def report(self, session: str, answer: str = FAKE_ANSWER, **more: Any) -> Report:
        ids = self.tokenizer.encode(answer, add_special_tokens=False)
        params = SamplingParams(logit_bias={7: 1.0}, seed=3)
        return Report(session, [Answered([1, 2, 3], params, ids, self.tokenizer.eos_ids[0], 0.02, 0.5)], **more)

    def pointer(self) -> pointer.Pointer:
        read = pointer.PointerFile(self.run_dir).read()
        assert read is not None
        return read

    def update(self, path: Path, traffic: Callable[[str], None] | None = None, **asked: Any) -> Any:
        """An update that compares; ``traffic`` is called with the session as soon as workers are to report."""
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(self.ask, "load", path=str(path), **{"shadow": 50, "shadow_limit_s": 30, **asked})
            while not done.done() and traffic is not None:
                seen = self.pointer()
                if seen.shadow_percent:
                    assert seen.next_socket is not None
                    traffic(seen.next_socket)
                    break
                time.sleep(0.01)
            return done.result()

    def send(self, num: int, **more: Any) -> Callable[[str], None]:
        def traffic(session: str) -> None:
            for _ in range(num):
                self.ask("shadow", report=self.report(session, **more))

        return traffic


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running_world(tmp_path_factory.mktemp("models"), Live) as world:
        world.tokenizer = Tokenizer.from_dir(world.model("first"))
        server = ControlServer(world.run_dir, operations(world.fleet, world.updater, world.health))
        yield world
        server.close()


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After an update, however it ended, workers report nothing and nothing is being compared."""
    yield
    if "live" in request.fixturenames:
        world = request.getfixturevalue("live")
        assert world.pointer().shadow_percent == 0
        assert world.updater.comparison is None
        assert eventually(lambda: not any(thread.name.startswith("shadow-replay") for thread in threading.enumerate()))
        assert eventually(lambda: world.processes() == 1)


def test_a_model_that_answers_the_same_is_switched_to(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    done = live.update(live.model("same"), live.send(3), shadow_requests=3, min_agreement=1)
    shadow = done["shadow"]
    assert (live.served, shadow["compared"], shadow["identical"], shadow["agreement"]) == ("same", 3, 3, 1.0)
    assert shadow["first_token_s"] == {"old": {"median": 0.02, "p95": 0.02}, "new": {"median": 0.05, "p95": 0.05}}
    assert shadow["total_s"] == {"old": {"median": 0.5, "p95": 0.5}, "new": {"median": 0.25, "p95": 0.25}}
    logged = [record for record in caplog.records if record.getMessage() == "update.shadowed"]
    assert [record.paddle_ds_fields["compared"] for record in logged] == [3]  # type: ignore[attr-defined]
    assert not any("1, 2, 3" in str(vars(record)) for record in caplog.records)


def test_a_model_that_answers_otherwise_is_refused(live: Live) -> None:
    before = live.fleet.current
    with pytest.raises(ShadowMismatchError, match="0 identical") as refused:
        live.update(live.model("other", answer="No"), live.send(2), shadow_requests=2, min_agreement=0.9)
    assert (refused.value.code, live.fleet.current) == ("checkpoint_shadow_mismatch", before)
    assert live.updater.last_error == refused.value.message


def test_without_a_minimum_the_difference_is_only_told(live: Live) -> None:
    found: list[Any] = []

    def traffic(session: str) -> None:
        found.append(live.ask("status")["update"])
        live.send(1)(session)

    done = live.update(live.model("brief", answer="Let"), traffic, shadow_requests=1)
    assert [(update["stage"], update["shadow"]["requests"], update["shadow"]["compared"]) for update in found] == [
        ("shadowing", 1, 0)
    ]
    assert live.ask("status")["update"]["shadow"] is None
    assert live.served == "brief"
    assert 0 < done["shadow"]["agreement"] < 1


def test_a_new_engine_that_dies_meanwhile_is_refused(live: Live) -> None:
    before = live.served
    with pytest.raises(EngineDied, match="died while its answers were compared"):
        live.update(live.model("dies", dies_later=True), live.send(1))
    assert (live.served, live.fleet.current.ready) == (before, True)


def test_too_few_requests_refuse_where_a_minimum_is_asked_for(live: Live) -> None:
    before = live.served
    with pytest.raises(ShadowMismatchError, match=r"only 1 of 3 requests were compared within 0\.5 s"):
        live.update(live.model("idle"), live.send(1), shadow_requests=3, shadow_limit_s=0.5, min_agreement=0.5)
    assert live.served == before


def test_without_memory_for_two_nothing_is_compared_and_nothing_drained(live: Live) -> None:
    before = live.fleet.current
    with pytest.raises(MemoryPlanError, match=r"needs memory for two engines.*no room") as refused:
        live.update(live.model("large", needs_room=True))
    assert (refused.value.param, live.fleet.current, live.fleet.refusal) == ("shadow", before, "")


def test_wrong_values_and_reports_are_refused_by_the_control_socket(live: Live) -> None:
    with pytest.raises(InvalidRequest, match="min_agreement"):
        live.ask("load", path=str(live.model("never")), min_agreement=0.9)
    with pytest.raises(InvalidRequest, match="Expected"):
        live.ask("shadow", report={"session": 1})
    live.ask("shadow", report=live.report("engine-1.sock"))  # late: nothing is compared any more
    assert live.updater.stage == ""


def test_a_server_that_stops_ends_a_comparison(live: Live) -> None:
    def stop(session: str) -> None:
        live.stopping = True

    try:
        with pytest.raises(EngineUnavailable, match="shutting down"):
            live.update(live.model("late"), stop)
    finally:
        live.stopping = False
