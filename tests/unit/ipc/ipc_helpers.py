"""A scripted engine behind the real socket, and sockets that speak raw frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.ipc import messages
from paddle_ds.ipc.client import Event, TokenStream
from paddle_ds.ipc.server import EngineServer, FromWorker, WorkerGone

PATIENCE_S = 20.0


def eventually(condition: Callable[[], Any]) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def info(boot_id: str = "boot-1", state: Any = "ready", progress: float = 0.0) -> messages.EngineInfo:
    return messages.EngineInfo(boot_id, state, 1, progress)


def submit(request_id: str = "a", prompt_ids: Sequence[int] = (1, 2), **params: Any) -> messages.Submit:
    return messages.Submit(request_id, list(prompt_ids), SamplingParams(**params))


def finished(request_id: str = "a", reason: Any = "stop") -> messages.Finished:
    return messages.Finished(request_id, reason, messages.Usage(2, 1))


def events_of(stream: TokenStream) -> list[Event]:
    """Everything until all requests of the stream have ended."""
    events = []
    while stream.unfinished:
        event = stream.get(PATIENCE_S)
        assert event is not None, f"no end for {stream.unfinished}"
        events.append(event)
    return events


class ScriptedEngine:
    """The engine's end. One thread owns ``send`` and ``receive``; a test hands it work.

    It answers a ``Submit`` with the prompt, token by token, and a ``Finished``, unless ``silent``.
    """

    def __init__(self, socket_path: Path, boot_id: str, state: str) -> None:
        self.server = EngineServer(socket_path, info(boot_id, state))
        self.received: list[FromWorker | WorkerGone] = []
        self.silent = False
        self._work: list[Callable[[EngineServer], None]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def submitted(self) -> list[str]:
        return [m.request_id for m in self.messages if isinstance(m, messages.Submit)]

    @property
    def messages(self) -> list[messages.Submit | messages.Abort]:
        return [item.message for item in self.received if isinstance(item, FromWorker)]

    @property
    def wanted(self) -> list[str]:
        """Requests that somebody waits for; only for tests with one worker."""
        wanted: list[str] = []
        for item in self.received:
            if isinstance(item, WorkerGone):
                wanted.clear()
            elif isinstance(item.message, messages.Submit):
                wanted.append(item.message.request_id)
        return wanted

    @property
    def gone(self) -> list[bytes]:
        return [item.client for item in self.received if isinstance(item, WorkerGone)]

    def do(self, work: Callable[[EngineServer], None]) -> None:
        """Run ``work(server)`` in the engine's thread and wait for it."""
        done = threading.Event()
        self._work += [work, lambda server: done.set()]
        assert done.wait(PATIENCE_S)

    def reply(self, step: messages.Step) -> None:
        """Send a step to the worker that submitted last."""
        clients = [item.client for item in self.received if isinstance(item, FromWorker)]
        self.do(lambda server: server.send(clients[-1], step))

    def close(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            self._thread.join()
            self.server.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            while self._work:
                self._work.pop(0)(self.server)
            item = self.server.receive(0.01)
            if item is None:
                continue
            if isinstance(item, FromWorker) and isinstance(item.message, messages.Submit) and not self.silent:
                self._answer(item.client, item.message)
            self.received.append(item)

    def _answer(self, client: bytes, request: messages.Submit) -> None:
        for token_id in request.prompt_ids:
            self.server.send(client, messages.Step(deltas=[messages.Delta(request.request_id, [token_id])]))
        self.server.send(client, messages.Step(finished=[finished(request.request_id)]))


class RawSocket:
    """A ZeroMQ socket without our client or server around it."""

    def __init__(self, kind: int) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))

    @classmethod
    def worker(cls, socket_path: Path, identity: str) -> RawSocket:
        raw = cls(zmq.DEALER)
        raw.socket.setsockopt(zmq.IDENTITY, identity.encode())
        raw.socket.connect(f"ipc://{socket_path}")
        return raw

    @classmethod
    def engine(cls, socket_path: Path) -> RawSocket:
        raw = cls(zmq.ROUTER)
        raw.socket.bind(f"ipc://{socket_path}")
        return raw

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(list(frames))

    def receive(self) -> messages.FromEngine:
        return messages.decode_from_engine(self.socket.recv())

    def close(self) -> None:
        self.socket.close()
        self._context.term()
