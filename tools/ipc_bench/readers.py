"""An HTTP worker's part in the bench: how it opens a stream, reads it, and gives it up, in each arm."""

from __future__ import annotations

import collections
import os
import queue
import secrets
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from gunicorn.dirty import DirtyClient, close_dirty_client, get_dirty_client  # type: ignore[import-untyped]

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import from_info
from paddle_ds.ipc.client import EngineClient
from paddle_ds.ipc.client import TokenStream as EngineStream
from paddle_ds.ipc.messages import Delta, Failed, Submit

#: answers may take long; Gunicorn's default of 30 s would end them
_DIRTY_TIMEOUT_S = 3600.0
#: an exchange takes one step
_EXCHANGE_TIMEOUT_S = 10.0


class Stream(Protocol):
    """The frames of one request, as the times of their steps."""

    def __iter__(self) -> Iterator[int]: ...

    def leave(self) -> None:
        """Nobody wants the rest."""


class Reader(Protocol):
    """One HTTP worker's way to the engine. ``version`` is 0 or 1: which of two models."""

    def open(self, request_id: str, num_prompt: int, num_frames: int, version: int) -> Stream: ...

    def state(self) -> str:
        """What a health probe would learn."""


class ZeromqReader:
    """``paddle_ds.ipc``, one client a model."""

    def __init__(self) -> None:
        self._clients = [EngineClient(path) for path in os.environ["IPC_BENCH_SOCKETS"].split(":")]

    def open(self, request_id: str, num_prompt: int, num_frames: int, version: int) -> Stream:
        params = SamplingParams(max_tokens=num_frames)
        return _ZeromqStream(self._clients[version].submit([Submit(request_id, [1] * num_prompt, params)]))

    def state(self) -> str:
        client = self._clients[0]
        return client.info.state if client.connected and client.info is not None else "gone"


class _ZeromqStream:
    def __init__(self, stream: EngineStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[int]:
        while self._stream.unfinished:
            event = self._stream.get()
            if isinstance(event, Failed):
                raise from_info(event.error)
            if isinstance(event, Delta):
                yield event.token_ids[0]

    def leave(self) -> None:
        self._stream.abort()


class DirtyStreamReader:
    """The documented way: a client a thread, a generator a request."""

    _APPS = ("ipc_bench.dirty_apps:StreamApp", "ipc_bench.dirty_apps:OtherStreamApp")

    def open(self, request_id: str, num_prompt: int, num_frames: int, version: int) -> Stream:
        client = get_dirty_client(timeout=_DIRTY_TIMEOUT_S)
        return _DirtyStream(client, client.stream(self._APPS[version], "generate", request_id, num_prompt, num_frames))

    def state(self) -> str:
        return _dirty_state(self._APPS[0])


class _DirtyStream:
    def __init__(self, client: DirtyClient, chunks: Iterator[list[int]]) -> None:
        self._client = client
        self._chunks = chunks

    def __iter__(self) -> Iterator[int]:
        for chunk in self._chunks:
            yield chunk[0]

    def leave(self) -> None:
        # there is no call to end a stream; closing the connection is all a client can do, and it waits for a chunk that is due
        self._client.close()


class DirtyExchangeReader:
    """Calls without end while something runs, in a thread for the whole HTTP worker."""

    _APPS = ("ipc_bench.dirty_apps:ExchangeApp", "ipc_bench.dirty_apps:OtherExchangeApp")

    def __init__(self) -> None:
        self._pumps = [_Pump(app) for app in self._APPS]

    def open(self, request_id: str, num_prompt: int, num_frames: int, version: int) -> Stream:
        return self._pumps[version].open(request_id, num_prompt, num_frames)

    def state(self) -> str:
        return _dirty_state(self._APPS[0])


class _Pump:
    def __init__(self, app: str) -> None:
        self._app = app
        self._owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._changed = threading.Condition()
        self._submits: list[tuple[str, int, int]] = []
        self.aborts: collections.deque[str] = collections.deque()
        self._streams: dict[str, _ExchangeStream] = {}
        threading.Thread(target=self._run, name="pump", daemon=True).start()

    def open(self, request_id: str, num_prompt: int, num_frames: int) -> Stream:
        stream = _ExchangeStream(self, request_id)
        with self._changed:
            self._streams[request_id] = stream
            self._submits.append((request_id, num_prompt, num_frames))
            self._changed.notify()
        return stream

    def _run(self) -> None:
        client = get_dirty_client(timeout=_EXCHANGE_TIMEOUT_S)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._streams)
                submits, self._submits = self._submits, []
            aborts = [self.aborts.popleft() for _ in range(len(self.aborts))]
            try:
                new = client.execute(self._app, "exchange", self._owner, submits, aborts)
            except Exception as error:
                self._fail(error)
                continue
            self._take(new, aborts)

    def _take(self, new: list[tuple[str, list[int], bool]], aborted: list[str]) -> None:
        with self._changed:
            for request_id, stamps, is_last in new:
                if (stream := self._streams.get(request_id)) is not None:
                    stream.events.put(stamps[0])
                    if is_last:
                        self._streams.pop(request_id).events.put(None)
            for request_id in aborted:
                if (stream := self._streams.pop(request_id, None)) is not None:
                    stream.events.put(None)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            lost, self._streams = self._streams, {}
        for stream in lost.values():
            stream.events.put(error)


class _ExchangeStream:
    def __init__(self, pump: _Pump, request_id: str) -> None:
        self._pump = pump
        self._request_id = request_id
        self.events: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[int]:
        while (event := self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    def leave(self) -> None:
        self._pump.aborts.append(self._request_id)


def _dirty_state(app: str) -> str:
    try:
        get_dirty_client(timeout=_DIRTY_TIMEOUT_S).execute(app, "where")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        close_dirty_client()
    return "ready"


READERS: dict[str, Any] = {
    "zeromq": ZeromqReader,
    "dirty-stream": DirtyStreamReader,
    "dirty-exchange": DirtyExchangeReader,
}
