"""An HTTP worker tells the supervisor how some of its requests were answered, and no request waits for that."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_engine import ANSWERS, End, Fail, FakeEngine, Script, say
from flask.testing import FlaskClient
from gunicorn_process import eventually

from paddle_ds import settings
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import InternalError
from paddle_ds_serving.app import create_app
from paddle_ds_serving.generation import Order
from paddle_ds_serving.shadow_tap import ShadowTap
from paddle_ds_serving.supervision import pointer, shadow
from paddle_ds_serving.supervision.control import ControlServer
from paddle_ds_serving.supervision.pointer import Pointer
from paddle_ds_serving.supervision.switch import EngineSwitch

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
SESSION = "engine-2.sock"


class Worker:
    """An application that follows a pointer, and what its supervisor was told."""

    def __init__(self, directory: Path, tokenizer_dir: Path, script: Script, **environ: str) -> None:
        self.directory = directory
        self.reports: list[shadow.Report] = []
        #: the supervisor takes nothing while this is closed
        self.open = threading.Event()
        self.open.set()
        self._control = ControlServer(directory, {"shadow": self._take})
        self.shadow(100)
        self._engine = FakeEngine(tokenizer_dir, script, burst=True)
        self._switch = EngineSwitch(directory, lambda path: self._engine)
        self.app = create_app(self._switch, settings.load(environ))
        self.client: FlaskClient = self.app.test_client()

    def shadow(self, percent: float, session: str | None = SESSION) -> None:
        pointer.write(self.directory, Pointer(1, "engine-1.sock", session, shadow_percent=percent))

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> Any:
        body = body or CHAT
        return self.client.post(path, json=body, buffered=True)

    def told(self, num: int = 1) -> list[shadow.Report]:
        assert eventually(lambda: len(self.reports) >= num)
        return self.reports

    def close(self) -> None:
        self.open.set()
        self._switch.close()
        self._control.close()
        self._engine.actor.closing.set()

    def _take(self, question: Any) -> None:
        self.open.wait(30)
        self.reports.append(msgspec.convert(question["report"], shadow.Report, str_keys=True))


Start = Callable[..., Worker]


@pytest.fixture
def start(tokenizer_dir: Path) -> Iterator[Start]:
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="pds-") as directory:

        def make(script: Script = ANSWERS, **environ: str) -> Worker:
            workers.append(Worker(Path(directory), tokenizer_dir, script, **environ))
            return workers[-1]

        yield make
        for worker in workers:
            worker.close()


def test_a_report_has_what_the_engine_was_asked_and_what_it_said(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    worker = start(say([5, 6, 7]))
    worker.post("/v1/completions", prompt=[1, 2, 3], temperature=0, logit_bias={"9": 1.5})
    (report,) = worker.told()
    (answer,) = report.answers
    (asked,) = worker._engine.actor.submitted
    assert (report.session, report.num_missed) == (SESSION, 0)
    assert (answer.prompt_ids, answer.params) == (asked.prompt_ids, asked.params)
    assert answer.params.logit_bias == {9: 1.5}
    stop = worker._engine.actor.tokenizer.eos_ids[0]
    assert (answer.token_ids, answer.stop_token_id, answer.tokens) == ([5, 6, 7], stop, [5, 6, 7, stop])
    assert (answer.first_token_s, answer.total_s) == (0.05, 0.25)
    assert not any("1, 2, 3" in str(vars(record)) for record in caplog.records)


def test_what_is_drawn_can_be_drawn_again(start: Start) -> None:
    worker = start()
    worker.post(**CHAT, temperature=0.7)
    worker.post(**CHAT, temperature=0.7, seed=5)
    worker.post(**CHAT, temperature=0)
    seeds = [report.answers[0].params.seed for report in worker.told(3)]
    asked = [submit.params.seed for submit in worker._engine.actor.submitted]
    assert seeds == asked
    assert (seeds[0] is not None, seeds[1:]) == (True, [5, None])


def test_streams_and_several_answers_are_reported_whole(start: Start) -> None:
    worker = start()
    worker.post(**CHAT, stream=True)
    worker.post(**CHAT, n=3)
    assert [len(report.answers) for report in worker.told(2)] == [1, 3]


@pytest.mark.parametrize(
    ("script", "more"),
    [
        (say(Fail(InternalError("broken"))), {}),
        (say("Hello", End("abort")), {}),
        (say("Hello STOP world"), {"stop": "STOP"}),
    ],
    ids=["failed", "aborted", "stop-string"],
)
def test_what_no_other_engine_could_answer_the_same_is_left_out(start: Start, script: Script, more: Any) -> None:
    worker = start(script)
    worker.post(**CHAT, **more)
    worker._engine.actor.script = ANSWERS
    worker.post()
    (report,) = worker.told()
    assert len(report.answers[0].token_ids) > 2


def test_nothing_is_reported_that_was_not_chosen_or_came_too_late(start: Start) -> None:
    worker = start()
    worker.shadow(0)
    worker.post()
    worker.shadow(100, None)
    worker.post()

    def end_meanwhile(request: Any) -> Any:
        worker.shadow(100, "engine-3.sock")
        return ["Hello"]

    worker.shadow(100)
    worker._engine.actor.script = end_meanwhile
    worker.post()
    worker._engine.actor.script = ANSWERS
    worker.post()
    (report,) = worker.told()
    assert report.session == "engine-3.sock"


@pytest.mark.parametrize(
    ("percent", "draw", "chosen"), [(10, 0.0999, True), (10, 0.1, False), (0.5, 0.0, True), (100, 0.99, True)]
)
def test_so_many_per_cent_are_chosen(tmp_path: Path, percent: float, draw: float, chosen: bool) -> None:
    tap = ShadowTap(tmp_path, lambda: Pointer(1, "engine-1.sock", SESSION, shadow_percent=percent), lambda: draw)
    order = Order("id", [], SamplingParams(), None)
    assert (tap.choose(order) is not None) == chosen


def test_no_request_waits_for_a_supervisor_that_is_slow_and_what_is_dropped_is_told(start: Start) -> None:
    worker = start(say("Hello"))
    worker.open.clear()
    for _ in range(40):
        assert worker.post().status_code == 200
    worker.open.set()
    assert eventually(lambda: len(worker.reports) >= 33)
    worker.post()
    assert eventually(lambda: len(worker.reports) + sum(report.num_missed for report in worker.reports) == 41)


def test_a_supervisor_that_is_not_there_costs_nothing_but_the_report(start: Start) -> None:
    worker = start(say("Hello"))
    worker._control.close()
    assert worker.post().status_code == 200
    assert eventually(lambda: worker.app.extensions["paddle_ds"]._tap._num_missed == 1)
    worker._control = ControlServer(worker.directory, {"shadow": worker._take})
    worker.post()
    (report,) = worker.told()
    assert report.num_missed == 1


def test_an_answer_from_memory_is_not_the_engines(start: Start) -> None:
    worker = start(PADDLE_DS_RESPONSE_CACHE_S="60")
    cache = [worker.post(**CHAT, temperature=0).headers.get("x-cache") for _ in range(2)]
    assert (cache, len(worker.told(2))) == ([None, None], 2)
    worker.shadow(0)
    assert [worker.post(**CHAT, temperature=0).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
