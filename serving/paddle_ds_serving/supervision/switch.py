"""A worker's way to the current engine, which may be another one a moment later.

            pin() ── looks at the pointer ──► the client of the current engine ══► engine 2
                                              a client that is left            ══► engine 1, until its streams have ended

A request pins one client before it looks at the model, and stays with it: its tokenizer, its prompt, its tokens and the
``weight_version`` it tells are of one engine, whatever is switched meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from paddle_ds.errors import EngineUnavailable
from paddle_ds.ipc.client import EngineClient
from paddle_ds.ipc.messages import EngineInfo, Stats, Submit
from paddle_ds.logs import fields
from paddle_ds_serving.engine import EngineClient as AnyClient
from paddle_ds_serving.engine import TokenStream
from paddle_ds_serving.supervision.pointer import Pointer, PointerFile

_log = logging.getLogger(__name__)

#: longest wait of a request for the connection to an engine that was just switched to; it is there in milliseconds
CONNECT_S = 5.0
_POLL_S = 0.1


class EngineSwitch:
    """The engine client's shape over the engine that the pointer names. Any number of threads may use it.

    Attributes:
        on_joined: called with the client of an engine that is ready and will be, or was just, switched to.
        directory: where the pointer is.
    """

    def __init__(self, directory: Path, connect: Callable[[Path], AnyClient] = EngineClient) -> None:
        self.on_joined: Callable[[AnyClient], None] = lambda client: None
        self.directory = directory
        self._connect = connect
        self._file = PointerFile(directory)
        self._lock = threading.Lock()
        self._clients: dict[str, AnyClient] = {}
        self._wait_until_s: dict[str, float] = {}
        self._joined: set[str] = set()
        self._generation = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="engine-switch", daemon=True)
        self._thread.start()

    def pin(self) -> AnyClient:
        """The client of the engine that new requests go to now.

        Raises:
            EngineUnavailable: there is none, or no requests are taken.
        """
        pointer, client = self._current()
        if pointer is None or client is None:
            raise EngineUnavailable("the engine is not running; it may be starting")
        if pointer.refusal:
            raise EngineUnavailable(pointer.refusal)
        if pointer.generation > 1 and client.info is None:  # it was ready when it was switched to
            self._await(client, self._wait_until_s.get(pointer.socket, 0.0))
        return client

    @property
    def pointer(self) -> Pointer | None:
        """As it is now; ``None``: there is none."""
        return self._current()[0]

    @property
    def info(self) -> EngineInfo | None:
        client = self._current()[1]
        return client.info if client else None

    @property
    def stats(self) -> Stats | None:
        client = self._current()[1]
        return client.stats if client else None

    @property
    def connected(self) -> bool:
        client = self._current()[1]
        return client is not None and client.connected

    def submit(self, requests: Sequence[Submit]) -> TokenStream:
        """To the current engine. Whoever has looked at a model before pins its client instead.

        Raises:
            EngineUnavailable, ServerOverloaded: the engine takes no requests.
        """
        return self.pin().submit(requests)

    def close(self) -> None:
        """Drop all connections."""
        self._closing.set()
        self._thread.join(timeout=5)
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def _current(self) -> tuple[Pointer | None, AnyClient | None]:
        """The pointer and its client."""
        with self._lock:
            pointer = None if self._closing.is_set() else self._file.read()
            if pointer is None:
                return None, None
            client = self._client(pointer.socket)
            if pointer.generation != self._generation:
                self._generation = pointer.generation
                _log.info("engine.switched", extra=fields(generation=pointer.generation, socket=pointer.socket))
            return pointer, client

    def _client(self, socket: str) -> AnyClient:
        if socket not in self._clients:
            self._clients[socket] = self._connect(self.directory / socket)
            self._wait_until_s[socket] = time.monotonic() + CONNECT_S
        return self._clients[socket]

    def _await(self, client: AnyClient, deadline_s: float) -> None:
        while client.info is None and time.monotonic() < deadline_s and not self._closing.is_set():
            time.sleep(0.005)

    def _follow(self) -> None:
        """Connect ahead to an engine that joins; let go of those that have left."""
        while not self._closing.wait(_POLL_S):
            pointer, _ = self._current()
            if pointer is None:
                continue
            wanted = {pointer.socket, *([pointer.next_socket] if pointer.next_socket else ())}
            with self._lock:
                for socket in wanted:
                    self._client(socket)
                left = [name for name, client in self._clients.items() if name not in wanted and not client.connected]
                gone = [self._clients.pop(name) for name in left]
                self._wait_until_s = {name: self._wait_until_s[name] for name in self._clients}
                joining = [name for name in wanted if name not in self._joined and _is_ready(self._clients[name])]
                self._joined = {name for name in self._joined if name in self._clients} | set(joining)
                clients = [self._clients[name] for name in joining]
            for client in gone:
                client.close()
            for client in clients:
                self.on_joined(client)


def _is_ready(client: AnyClient) -> bool:
    return client.connected and client.info is not None and client.info.state == "ready"
