"""Clients that send a byte now and then, while somebody else wants to be answered."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping

import requests

from trials.wire import parse, problem_of

_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\n"
_BYTE_EVERY_S = 1.0
_ASK_EVERY_S = 0.2
_PATIENCE_S = 30.0


class Patient:
    """An ordinary client who asks again and again while the block runs."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url
        self._headers = headers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        #: of each answer
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def __enter__(self) -> Patient:
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        body = {"prompt": "1+1=", "max_tokens": 4}
        while not self._over.wait(_ASK_EVERY_S):
            asked_s = time.monotonic()
            try:
                response = requests.post(f"{self._url}/v1/completions", json=body, headers=self._headers, timeout=_PATIENCE_S)
                response.raise_for_status()
            except requests.RequestException as error:
                self.failures.append(type(error).__name__)
            else:
                self.seconds.append(time.monotonic() - asked_s)


@dataclasses.dataclass
class _Slow:
    connection: socket.socket
    #: still to be sent, a byte at a time
    rest: bytes
    received: bytes = b""
    ended_s: float | None = None


@dataclasses.dataclass(frozen=True)
class SlowResult:
    """What became of them: status of the answer, or ``closed`` without one."""

    outcomes: Counter[str]
    ended_s_max: float
    problems: list[str]


def crawl(port: int, key: bytes, count: int, limit_s: float) -> SlowResult:
    """Open so many connections, half of them slow with headers, half with bodies, until the server has ended each."""
    started_s = time.monotonic()
    slow: list[_Slow] = []
    for number in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        head = _HEAD % key
        first = head[: 10 + number % 90] if number % 2 else head + b"Content-Length: 100000\r\n\r\n{"
        connection.sendall(first)
        connection.setblocking(False)
        slow.append(_Slow(connection, b"X-Slow: " + b"y" * 1000 if number % 2 else b" " * 1000))
    while any(client.ended_s is None for client in slow) and time.monotonic() < started_s + limit_s:
        for client in slow:
            if client.ended_s is None and _step(client):
                client.ended_s = time.monotonic() - started_s
                client.connection.close()
        time.sleep(_BYTE_EVERY_S)
    return _result(slow, limit_s)


def _step(client: _Slow) -> bool:
    """A byte more. Whether the server has ended it."""
    with contextlib.suppress(ConnectionError, BlockingIOError):
        client.connection.send(client.rest[:1])
        client.rest = client.rest[1:]
    try:
        while block := client.connection.recv(65536):
            client.received += block
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _result(slow: list[_Slow], limit_s: float) -> SlowResult:
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    for client in slow:
        answers = parse(client.received)
        problems += [problem for answer in answers if (problem := problem_of(answer))]
        if client.ended_s is None:
            problems.append(f"still open after {limit_s:g} s")
            client.connection.close()
        outcomes[" ".join(str(answer.status) for answer in answers) or "closed"] += 1
    return SlowResult(outcomes, max((client.ended_s or limit_s for client in slow), default=0.0), problems)
