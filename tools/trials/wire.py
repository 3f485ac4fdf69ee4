"""Bytes to a server's port, whatever they are, and what comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
import time
from typing import Literal

#: what a client does once it has sent its bytes: wait for the answer; say that nothing more comes; leave; leave with a reset
Ending = Literal["read", "half", "close", "reset"]

_KEYS = {"message", "type", "param", "code"}
#: seconds of silence that a client who ends its request at once grants the server
_GRACE_S = 0.05


@dataclasses.dataclass(frozen=True)
class Sent:
    """One attempt. ``kind`` is the class that it is counted in."""

    kind: str
    data: bytes
    ending: Ending = "read"
    #: seconds between the two halves of the bytes
    pause_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of it."""

    kind: str
    #: of each answer; empty where the connection was closed without a word, or nobody waited for one
    statuses: tuple[int, ...]
    seconds: float
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True


def exchange(port: int, sent: Sent, limit_s: float) -> Outcome:
    """Send, and read until the server closes the connection."""
    started_s = time.monotonic()
    received, problems = b"", []
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it answers before it has read everything
                _send(connection, sent)
            if sent.ending != "close" and sent.ending != "reset":
                received = _read(connection)
    except TimeoutError:
        problems.append(f"no end after {limit_s:g} s")
    except OSError as error:
        problems.append(f"no connection: {error}")
    answers = parse(received, head_only=sent.data.startswith(b"HEAD "))
    problems += [problem for answer in answers if (problem := problem_of(answer))]
    return Outcome(sent.kind, tuple(answer.status for answer in answers), time.monotonic() - started_s, tuple(problems))


def _send(connection: socket.socket, sent: Sent) -> None:
    middle = len(sent.data) // 2 if sent.pause_s else 0
    if middle:
        connection.sendall(sent.data[:middle])
        time.sleep(sent.pause_s)
    connection.sendall(sent.data[middle:])
    if sent.ending == "half":
        time.sleep(_GRACE_S)
        with contextlib.suppress(OSError):  # the server was faster
            connection.shutdown(socket.SHUT_WR)
    elif sent.ending == "reset":
        time.sleep(_GRACE_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read(connection: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionError):  # a server that has not read everything ends with a reset
        while block := connection.recv(65536):
            received += block
    return bytes(received)


def parse(received: bytes, *, head_only: bool = False) -> list[Answer]:
    """The responses in what came back, without the interim ones (100 Continue)."""
    found = []
    rest = received
    while rest:
        head, separator, rest = rest.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        version, _, status = lines[0].partition(" ")
        if not separator or not version.startswith("HTTP/1.") or not status[:3].isdigit():
            return [*found, Answer(0, {}, head, whole=False)]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        code = int(status[:3])
        if code < 200:
            continue
        # what is no request is no HEAD either, whatever it begins with: its refusal has a body
        empty = code in (204, 304) or (head_only and not rest)
        body, rest, whole = (b"", rest, True) if empty else _body(headers, rest)
        found.append(Answer(code, headers, body, whole))
    return found


def _body(headers: dict[str, str], rest: bytes) -> tuple[bytes, bytes, bool]:
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while True:
            size, separator, rest = rest.partition(b"\r\n")
            num_bytes = int(size, 16) if separator else -1
            if num_bytes < 0 or len(rest) < num_bytes + 2:
                return body, b"", False
            body, rest = body + rest[:num_bytes], rest[num_bytes + 2 :]
            if num_bytes == 0:
                return body, rest, True
    if "content-length" in headers:
        num_bytes = int(headers["content-length"])
        return rest[:num_bytes], rest[num_bytes:], len(rest) >= num_bytes
    return rest, b"", True


def problem_of(answer: Answer) -> str | None:
    """What no answer may be: a server error but 503, cut off, or an error without OpenAI's object."""
    if answer.status == 0:
        return f"no HTTP: {answer.body[:80]!r}"
    if answer.status >= 500 and answer.status != 503:
        return f"status {answer.status}"
    if not answer.whole:
        return f"status {answer.status}, cut off"
    if answer.status < 400 or not answer.body:
        return None
    try:
        error = json.loads(answer.body)["error"]
        wrong = not isinstance(error, dict) or error.keys() != _KEYS or answer.headers["content-type"] != "application/json"
    except (ValueError, KeyError, TypeError):
        wrong = True
    return f"status {answer.status} without an error object: {answer.body[:80]!r}" if wrong else None
