"""Engines and workers that vanish, come back, or talk nonsense."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from ipc_helpers import RawSocket, ScriptedEngine, events_of, eventually, finished, info, submit

from paddle_ds.errors import EngineUnavailable
from paddle_ds.ipc.client import EngineClient, TokenStream
from paddle_ds.ipc.messages import Delta, EngineInfo, Failed, Hello, Step, encode

HELPERS = Path(__file__).parent

#: an engine that answers every request with one token and no end
ENGINE = """
import sys
from pathlib import Path
from paddle_ds.ipc.messages import Delta, Step
from paddle_ds.ipc.server import EngineServer, FromWorker
from ipc_helpers import info
server = EngineServer(Path(sys.argv[1]), info("boot-killed"))
print("up", flush=True)
while True:
    item = server.receive()
    if isinstance(item, FromWorker):
        server.send(item.client, Step(deltas=[Delta(item.message.request_id, [1])]))
"""
#: a worker that has one request under way
WORKER = """
import sys, time
from paddle_ds.ipc.client import EngineClient
from ipc_helpers import eventually, submit
client = EngineClient(sys.argv[1])
eventually(lambda: client.connected)
client.submit([submit("theirs")])
print("up", flush=True)
time.sleep(600)
"""


def start(program: str, socket_path: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": f"{HELPERS}{os.pathsep}{HELPERS.parents[2]}"}
    command = [sys.executable, "-c", program, str(socket_path)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def assert_died(stream: TokenStream, *request_ids: str) -> None:
    ends = [event for event in events_of(stream) if not isinstance(event, Delta)]
    assert all(isinstance(end, Failed) and end.error.code == "engine_died" for end in ends)
    assert sorted(end.request_id for end in ends) == sorted(request_ids)
    assert stream.get(0) is None


def test_every_request_of_an_engine_that_closes_fails_once(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    streams = [client.submit([submit("a"), submit("b")]), client.submit([submit("c")])]
    eventually(lambda: len(engine.submitted) == 3)
    engine.reply(Step(finished=[finished("b")]))
    assert streams[0].get(10) == finished("b")
    engine.close()
    assert_died(streams[0], "a")
    assert_died(streams[1], "c")
    assert not client.connected
    with pytest.raises(EngineUnavailable):
        client.submit([submit("d")])


def test_every_request_of_an_engine_that_is_killed_fails_once(client: EngineClient, socket_path: Path) -> None:
    process = start(ENGINE, socket_path)
    eventually(lambda: client.connected)
    streams = [client.submit([submit(f"{number}-a"), submit(f"{number}-b")]) for number in range(5)]
    first = streams[0].get(20)
    assert first == Delta("0-a", [1])
    kill(process)
    for number, stream in enumerate(streams):
        assert_died(stream, f"{number}-a", f"{number}-b")
    assert not client.connected


def test_a_restarted_engine_is_found_and_old_requests_have_failed(
    client: EngineClient, socket_path: Path, start_engine: Callable[..., ScriptedEngine]
) -> None:
    process = start(ENGINE, socket_path)
    eventually(lambda: client.connected)
    old = client.submit([submit("old")])
    kill(process)
    engine = start_engine("boot-2")
    assert_died(old, "old")
    eventually(lambda: client.connected)
    assert client.info == info("boot-2")
    assert events_of(client.submit([submit("new", [7])])) == [Delta("new", [7]), finished("new")]
    eventually(lambda: engine.wanted == ["new"])


def test_what_was_under_way_to_a_dead_engine_is_given_up_at_the_next(
    client: EngineClient, socket_path: Path, start_engine: Callable[..., ScriptedEngine]
) -> None:
    process = start(ENGINE, socket_path)
    eventually(lambda: client.connected)
    process.send_signal(signal.SIGSTOP)  # it reads nothing more, so most of this stays in our own queues
    names = [str(number) for number in range(300)]
    stream = client.submit([submit(name, range(1000)) for name in names])
    kill(process)
    engine = start_engine("boot-2")
    engine.silent = True
    assert_died(stream, *names)
    eventually(lambda: client.connected)
    eventually(lambda: engine.gone)
    assert engine.wanted == []


def test_another_boot_id_is_another_engine(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    stream = client.submit([submit("a")])
    eventually(lambda: engine.submitted)
    for boot in ("boot-2", "boot-3"):
        engine.do(lambda server, boot=boot: server.broadcast(info(boot)))
    eventually(lambda: client.info == info("boot-3"))
    assert_died(stream, "a")
    assert client.connected


def test_nothing_waits_for_an_engine_that_is_not_there(client: EngineClient, start_engine: Callable[..., ScriptedEngine]) -> None:
    client.abort(["old"])
    engine = start_engine()
    eventually(lambda: client.connected)
    client.submit([submit("new")])
    eventually(lambda: engine.messages)
    assert engine.submitted == ["new"]
    assert len(engine.messages) == 1


def test_a_worker_that_is_killed_is_reported(socket_path: Path, start_engine: Callable[..., ScriptedEngine]) -> None:
    engine = start_engine()
    engine.silent = True
    process = start(WORKER, socket_path)
    eventually(lambda: engine.submitted == ["theirs"])
    before = len(engine.gone)
    kill(process)

    def told() -> bool:
        engine.do(lambda server: server.broadcast(info()))  # it is noticed when something is sent
        return len(engine.gone) > before

    eventually(told)


def test_a_worker_that_closed_is_reported(client: EngineClient, engine: ScriptedEngine) -> None:
    engine.silent = True
    client.submit([submit("a")])
    eventually(lambda: engine.submitted)
    before = len(engine.gone)
    client.close()

    def told() -> bool:
        engine.do(lambda server: server.broadcast(info()))
        return len(engine.gone) > before

    eventually(told)


def test_a_worker_that_is_gone_does_not_disturb_the_others(
    client: EngineClient, engine: ScriptedEngine, socket_path: Path
) -> None:
    process = start(WORKER, socket_path)
    kill(process)
    engine.do(lambda server: server.send(b"never-there", Step(finished=[finished("x")])))
    for _ in range(3):
        engine.do(lambda server: server.broadcast(info()))
    assert events_of(client.submit([submit("a", [3])])) == [Delta("a", [3]), finished("a")]


def test_a_worker_that_says_hello_again_has_given_up_what_it_asked_for(
    start_engine: Callable[..., ScriptedEngine], connect: Callable[..., RawSocket]
) -> None:
    engine, worker = start_engine(), connect("w")
    engine.silent = True
    for frame in (encode(Hello("w")), encode(submit("a")), encode(Hello("w")), encode(submit("b"))):
        worker.send(frame)
    eventually(lambda: len(engine.received) == 4)
    assert [type(item).__name__ for item in engine.received] == ["WorkerGone", "FromWorker", "WorkerGone", "FromWorker"]


NEST = b"\xa1x" + b"\x91" * 100_000 + b"\xc0"  # a field "x" of 100 000 lists in each other
BAD_PARAMS = {"type": "submit", "request_id": "a", "prompt_ids": [1], "params": {"temperature": 9}}
GARBAGE = {
    "nothing": b"",
    "noise": bytes(range(255, 55, -1)),
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "another type": msgspec.msgpack.encode({"type": "shutdown"}),
    "no type": msgspec.msgpack.encode({"request_id": "a"}),
    "a wrong field": msgspec.msgpack.encode({"type": "abort", "request_ids": [1]}),
    "parameters out of range": msgspec.msgpack.encode(BAD_PARAMS),
    "unknown parameters": msgspec.msgpack.encode({**BAD_PARAMS, "params": {"best_of": 2}}),
    "not UTF-8": b"\x81\xa4type\xa3\xff\xfe\xfd",
    "a deep nest for the engine": b"\x83" + msgspec.msgpack.encode({"type": "hello", "client": "x"})[1:] + NEST,
    "a deep nest for a worker": b"\x82" + msgspec.msgpack.encode({"type": "step"})[1:] + NEST,
    "a length it does not have": b"\xdd\xff\xff\xff\xff",
    "a frame of the engine": encode(Step(finished=[finished("a")])),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_does_not_kill_the_engines_end(
    start_engine: Callable[..., ScriptedEngine], connect: Callable[..., RawSocket], garbage: bytes
) -> None:
    engine, worker = start_engine(), connect()
    worker.send(garbage)
    worker.send(b"several", garbage, b"frames")
    worker.send(encode(Hello("raw")))
    answers = iter(worker.receive, info())  # a broken request is answered, too
    assert all(isinstance(answer, Step) for answer in answers)
    worker.send(encode(submit("after")))
    eventually(lambda: engine.submitted == ["after"])


BROKEN_SUBMITS = {
    "parameters out of range": (msgspec.msgpack.encode(BAD_PARAMS), "invalid_request", "temperature is 9"),
    "a field too many": (msgspec.msgpack.encode({**BAD_PARAMS, "params": {"best_of": 2}}), "internal_error", "best_of"),
    "tokens that are none": (msgspec.msgpack.encode({**BAD_PARAMS, "prompt_ids": "x"}), "internal_error", "prompt_ids"),
}


@pytest.mark.parametrize(("frame", "code", "reason"), BROKEN_SUBMITS.values(), ids=BROKEN_SUBMITS)
def test_a_broken_request_that_says_which_it_is_ends_with_an_error(
    start_engine: Callable[..., ScriptedEngine], connect: Callable[..., RawSocket], frame: bytes, code: str, reason: str
) -> None:
    engine, worker = start_engine(), connect()
    worker.send(frame)
    answer = worker.receive()
    assert isinstance(answer, Step)
    assert [(failed.request_id, failed.error.code) for failed in answer.failed] == [("a", code)]
    assert reason in answer.failed[0].error.message
    assert (engine.messages, engine.server.num_bad_frames) == ([], 0)


def test_frames_that_belong_to_no_request_are_counted(
    start_engine: Callable[..., ScriptedEngine], connect: Callable[..., RawSocket]
) -> None:
    engine, worker = start_engine(), connect()
    for frame in (b"", GARBAGE["noise"], GARBAGE["a wrong field"], GARBAGE["a deep nest for the engine"]):
        worker.send(frame)
    worker.send(encode(Hello("raw")))
    assert worker.receive() == info()
    assert engine.server.num_bad_frames == 4


@pytest.mark.parametrize("garbage", [*GARBAGE.values(), encode(Hello("x"))], ids=[*GARBAGE, "a frame of a worker"])
def test_garbage_does_not_kill_a_worker(client: EngineClient, socket_path: Path, garbage: bytes) -> None:
    engine = RawSocket.engine(socket_path)
    try:
        identity, _hello = engine.socket.recv_multipart()
        engine.send(identity, garbage)
        engine.send(identity, encode(EngineInfo("after", "ready", 1)))
        eventually(lambda: client.connected)
        assert client.info == EngineInfo("after", "ready", 1)
    finally:
        engine.close()
