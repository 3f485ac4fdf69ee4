"""Many clients of streams in one thread, slow ones among them.

    prompt      reads as fast as it can
    slow        reads a little, waits, and so on: it is always behind
    pausing     reads the beginning, nothing for a long time, then the rest
    stopped     reads the beginning; then nothing until all others have ended, and longer

All but the first have small buffers in the kernel, as a phone on a bad line has, so that what they do not read stays with the
server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from trials.answer import Answer

KINDS = ("prompt", "slow", "pausing", "stopped")
#: as on Ethernet; with the loopback's 64 KiB the kernel would take megabytes for a client that reads nothing
_SEGMENT_BYTES = 1400
_BUFFER_BYTES = 4096
_SIP_PAUSE_S = 0.1


@dataclasses.dataclass(frozen=True)
class Pace:
    """How the clients behave."""

    #: new clients in a second
    arrivals_per_s: float
    #: how long the pausing ones read nothing
    pause_s: float
    #: how long the stopped ones wait at most, after all others have ended, to be given up by the server
    stopped_s: float
    #: a request that takes longer hangs
    limit_s: float
    #: bytes that a slow one reads ten times in a second
    sip_bytes: int = 1024


@dataclasses.dataclass
class Client:
    """One client, and what became of its request."""

    kind: str
    body: dict[str, Any]
    keeps_alive: bool = True
    outcome: str = ""
    #: by ``time.monotonic()``
    ended_s: float = 0.0
    answer: Answer = dataclasses.field(default_factory=Answer)


class Readers:
    """All clients of a load.

    Args:
        port: of the server, on this machine.
        clients: in the order in which they come.
        pace: how they behave.
        given_up: whether the server has given up those that stopped to read; they read on only then.
    """

    def __init__(self, port: int, clients: Sequence[Client], pace: Pace, given_up: Callable[[], bool] = lambda: True) -> None:
        self._port = port
        self._clients = clients
        self._pace = pace
        self._given_up = given_up
        self._open: set[int] = set()
        self._num_reading = sum(client.kind != "stopped" for client in clients)
        #: streams that were open at the same time, at most
        self.num_open_max = 0
        #: streams that have told a token, or have ended
        self.num_begun = 0
        self._all_read = asyncio.Event()
        self._read_on = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Streams that are open now."""
        return len(self._open)

    @property
    def outcomes(self) -> dict[str, dict[str, int]]:
        """How often each kind of client saw what."""
        by_kind = {kind: Counter(client.outcome for client in self._clients if client.kind == kind) for kind in KINDS}
        return {kind: dict(counted) for kind, counted in by_kind.items() if counted}

    async def run(self) -> None:
        """Until every client has its outcome."""
        tasks = []
        started_s = time.monotonic()
        for number, client in enumerate(self._clients):
            await asyncio.sleep(max(0.0, started_s + number / self._pace.arrivals_per_s - time.monotonic()))
            tasks.append(asyncio.create_task(self._ask(number, client)))
        if self._num_reading:
            await self._all_read.wait()
        deadline_s = time.monotonic() + self._pace.stopped_s
        while not self._given_up() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.2)
        self._read_on.set()
        await asyncio.gather(*tasks)

    async def _ask(self, number: int, client: Client) -> None:
        answer = client.answer
        try:
            await asyncio.wait_for(self._converse(number, client), self._pace.limit_s)
            client.outcome = answer.outcome
        except (asyncio.TimeoutError, TimeoutError):
            client.outcome = "hangs"
        except OSError:
            client.outcome = answer.outcome if answer.ended else "cut off" if answer.status else "connection closed"
        finally:
            client.ended_s = time.monotonic()
            self._open.discard(number)
            self.num_begun += not answer.text
            self._num_reading -= client.kind != "stopped"
            if self._num_reading == 0:
                self._all_read.set()

    async def _converse(self, number: int, client: Client) -> None:
        loop = asyncio.get_running_loop()
        answer = client.answer
        with contextlib.closing(socket.socket()) as connection:
            connection.setblocking(False)
            if client.kind != "prompt":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
            await loop.sock_connect(connection, ("127.0.0.1", self._port))
            await loop.sock_sendall(connection, _request(client))
            num_bytes = 65536 if client.kind == "prompt" else self._pace.sip_bytes
            while not answer.ended and (data := await loop.sock_recv(connection, num_bytes)):
                had_begun = bool(answer.text)
                answer.feed(data)
                self._note(number, answer)
                if answer.text and not had_begun:
                    self.num_begun += 1
                    await self._pause(client.kind)
                if client.kind == "slow":
                    await asyncio.sleep(_SIP_PAUSE_S)

    def _note(self, number: int, answer: Answer) -> None:
        if answer.status == 200 and not answer.ended:
            self._open.add(number)
            self.num_open_max = max(self.num_open_max, len(self._open))

    async def _pause(self, kind: str) -> None:
        if kind == "pausing":
            await asyncio.sleep(self._pace.pause_s)
        elif kind == "stopped":
            await self._read_on.wait()


def _request(client: Client) -> bytes:
    body = json.dumps(client.body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: load",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"connection: {'keep-alive' if client.keeps_alive else 'close'}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
