"""The control socket and the canary."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_engine import End, Fail, FakeEngine, Script, ready_info, say

from paddle_ds.errors import CanaryError, EngineUnavailable, InternalError, InvalidRequest, MemoryPlanError, ServerOverloaded
from paddle_ds.ipc.messages import ModelInfo, TokenLogprob
from paddle_ds_serving.supervision import control
from paddle_ds_serving.supervision.canary import Canary, CanaryConfig
from paddle_ds_serving.supervision.control import ControlServer, ask, find


def refuse(question: Any) -> None:
    raise MemoryPlanError("no room", param="path")


def crash(question: Any) -> None:
    raise RuntimeError("a defect")


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pds-") as directory:
        yield Path(directory)


@pytest.fixture
def path(runtime_dir: Path) -> Iterator[Path]:
    directory = runtime_dir / "serve-7"
    directory.mkdir()
    server = ControlServer(directory, {"echo": dict, "refuse": refuse, "crash": crash})
    yield directory / control.FILE_NAME
    server.close()


def test_a_question_is_answered(path: Path) -> None:
    assert ask(path, "echo", path="/models/neu", may_drain=True) == {"op": "echo", "path": "/models/neu", "may_drain": True}


def test_only_the_user_may_ask(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_error_comes_back_as_itself(path: Path) -> None:
    with pytest.raises(MemoryPlanError, match="no room") as refused:
        ask(path, "refuse")
    assert refused.value.param == "path"


def test_a_defect_is_told(path: Path) -> None:
    with pytest.raises(InternalError, match="a defect"):
        ask(path, "crash")


def test_an_unknown_operation_names_those_there_are(path: Path) -> None:
    with pytest.raises(InvalidRequest, match="echo, refuse, crash"):
        ask(path, "dance")


@pytest.mark.parametrize("content", [b"\n", b"{\n", b"[]\n", b"\xff\xfe\n", b'{"op": 1}\n'])
def test_garbage_is_refused_and_the_next_question_answered(path: Path, content: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(content)
        assert json.loads(connection.makefile().readline())["error"]["code"] == "invalid_request"
    assert ask(path, "echo") == {"op": "echo"}


def test_who_asks_and_leaves_does_no_harm(path: Path) -> None:
    for _ in range(40):  # more than it serves at a time
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
    assert ask(path, "echo") == {"op": "echo"}


def test_a_server_is_found_by_its_runtime_directory(path: Path, runtime_dir: Path) -> None:
    assert find(runtime_dir) == find(runtime_dir, 7) == path
    with pytest.raises(EngineUnavailable, match="no running server"):
        find(runtime_dir, 8)


def test_what_a_killed_server_left_is_not_found(runtime_dir: Path) -> None:
    (runtime_dir / "serve-9").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(runtime_dir / "serve-9" / control.FILE_NAME))
    with pytest.raises(EngineUnavailable, match="no running server"):
        find(runtime_dir)


def test_of_several_servers_one_must_be_named(path: Path, runtime_dir: Path) -> None:
    (runtime_dir / "serve-8").mkdir()
    other = ControlServer(runtime_dir / "serve-8", {})
    with pytest.raises(EngineUnavailable, match="--pid: 7, 8"):
        find(runtime_dir)
    assert find(runtime_dir, 7) == path
    other.close()


def test_nobody_there_is_a_sentence(runtime_dir: Path) -> None:
    with pytest.raises(EngineUnavailable, match="no server answers"):
        ask(runtime_dir / "nothing.sock", "status")


Sing = Callable[..., None]


@pytest.fixture
def sing(tokenizer_dir: Path) -> Iterator[Sing]:
    engines: list[FakeEngine] = []

    def run(script: Script, expect: str | None = None, logprob: float | None = None) -> None:
        engine = FakeEngine(tokenizer_dir, script, burst=True)
        engines.append(engine)
        if logprob is not None:
            engine.actor._logprobs = lambda request, token_id: [TokenLogprob(token_id, logprob, [])]  # type: ignore[method-assign]
        model = ready_info(tokenizer_dir).model
        assert isinstance(model, ModelInfo)
        Canary.of(CanaryConfig("Hello", expect), msgspec.structs.replace(model, max_context_tokens=4096)).sing(engine)

    yield run
    for engine in engines:
        engine.close()


def test_any_answer_will_do(sing: Sing) -> None:
    sing(say("Hello"))


def test_an_expected_text_must_be_there(sing: Sing) -> None:
    sing(say("Hello world"), "lo wor")
    with pytest.raises(CanaryError, match=r"expects 'nineteen'.*'Hello world'"):
        sing(say("Hello world"), "nineteen")


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), -6.2], ids=["nan", "infinite", "uniform"])
def test_a_model_that_knows_nothing_fails(sing: Sing, logprob: float) -> None:
    with pytest.raises(CanaryError):
        sing(say("Hello world"), logprob=logprob)


def test_an_answer_without_a_token_fails(sing: Sing) -> None:
    with pytest.raises(CanaryError, match="no answer"):
        sing(say(End("stop")))


def test_a_failed_request_fails(sing: Sing) -> None:
    with pytest.raises(InternalError):
        sing(say(Fail(InternalError("broken"))))


def test_a_busy_engine_is_alive(sing: Sing) -> None:
    sing(say(Fail(ServerOverloaded("busy"))))
