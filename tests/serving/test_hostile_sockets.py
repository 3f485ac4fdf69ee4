"""A real Gunicorn that is sent what is no request, half of one, or two in one: it refuses, and goes on."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fake_engine import ANSWERS
from gunicorn_process import GunicornProcess, eventually

KEY = b"hostile-0123456789abcdef0123456789"
AUTH = {"authorization": f"Bearer {KEY.decode()}"}
BODY = b'{"messages": [{"role": "user", "content": "Hello"}]}'
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HEAD = b"Host: x\r\nContent-Type: application/json\r\nAuthorization: Bearer " + KEY + b"\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /admin/status HTTP/1.1\r\n" + HEAD + b"\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Iterator[GunicornProcess]:
    directory = tmp_path_factory.mktemp("hostile") / "server"
    process = GunicornProcess(directory, tokenizer_dir, ANSWERS, more_environ={"PADDLE_DS_API_KEY": KEY.decode()})
    yield process
    process.close()


@pytest.fixture(autouse=True)
def goes_on(server: GunicornProcess) -> Iterator[None]:
    """After each test an ordinary client is answered, and nothing has crashed."""
    yield
    response = httpx.post(
        f"{server.url}/v1/chat/completions", content=BODY, headers={**AUTH, "content-type": "application/json"}, timeout=30
    )
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello world"
    assert "Traceback" not in server.log
    assert "crashed" not in server.log


def talk(server: GunicornProcess, data: bytes, *, leave: bool = False) -> bytes:
    """Send, say that nothing more comes, and read to the end."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        try:
            connection.sendall(data)
            if leave:
                return b""
            connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(65536):
                received += block
        except OSError:
            pass  # it did not want to read more
    return received


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


GARBAGE = {
    "bytes": b"\x00\xff\x01\x80" * 50,
    "zeros": b"\x00" * 5000,
    "letters": b"A" * 100_000,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "http09": b"GET /health\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "answer": b"HTTP/1.1 200 OK\r\n\r\n",
    "proxy": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + LINE + HEAD + LENGTH + b"\r\n" + BODY,
    "null": b"GET /health HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    "return": b"GET /health HTTP/1.1\r\nX: a\rb\r\n\r\n",
    "fold": b"GET /health HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    "space": b"GET /health HTTP/1.1\r\nX : a\r\n\r\n",
    "hosts": b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_request_gets_a_refusal_or_nothing(server: GunicornProcess, data: bytes) -> None:
    received = talk(server, data)
    assert all(400 <= status < 500 for status in statuses(received))
    assert not received or b'{"error":{"message":' in received


SMUGGLING = {
    "length and chunks": LINE + HEAD + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and length": LINE + HEAD + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": LINE + HEAD + LENGTH + b"Content-Length: 0\r\n\r\n" + BODY + SMUGGLED,
    "gzip, chunked": LINE + HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked, identity": LINE + HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "odd coding": LINE + HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "negative": LINE + HEAD + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "plus": LINE + HEAD + b"Content-Length: +5\r\n\r\n12345" + SMUGGLED,
    "chunk size": LINE + HEAD + CHUNKED + b"\r\n0x5\r\n12345\r\n0\r\n\r\n" + SMUGGLED,
    "chunk end": LINE + HEAD + CHUNKED + b"\r\n5\r\n12345XX0\r\n\r\n" + SMUGGLED,
    "trailer": LINE + HEAD + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nbad trailer\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING)
def test_a_request_whose_end_is_unclear_ends_the_connection(server: GunicornProcess, data: bytes) -> None:
    assert statuses(talk(server, data)) == [400]


@pytest.mark.parametrize("leave", [True, False], ids=["gone", "half-closed"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
def test_half_a_request_harms_nobody(server: GunicornProcess, part: float, leave: bool) -> None:
    for whole in (
        LINE + HEAD + LENGTH + b"\r\n" + BODY,
        LINE + HEAD + CHUNKED + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    ):
        received = talk(server, whole[: int(len(whole) * part)], leave=leave)
        assert all(400 <= status < 500 for status in statuses(received))


def test_a_reset_in_the_middle_of_a_body_or_a_stream_harms_nobody(server: GunicornProcess) -> None:
    streamed = BODY[:-1] + b', "stream": true}'
    for data in (
        LINE + HEAD + LENGTH + b"\r\n" + BODY[:5],
        LINE + HEAD + b"Content-Length: %d\r\n\r\n" % len(streamed) + streamed,
    ):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        connection.sendall(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def test_requests_behind_each_other_are_all_answered(server: GunicornProcess) -> None:
    one = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    assert statuses(talk(server, one * 5 + b"\x00\x01\r\n\r\n")) == [200] * 5 + [400]


@pytest.mark.parametrize("name", [b"SCRIPT_NAME", b"PATH_INFO"])
def test_no_header_changes_the_path(server: GunicornProcess, name: bytes) -> None:
    received = talk(server, b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + name + b": /metrics\r\n\r\n")
    assert statuses(received) == [200]
    assert b'"state"' in received


@pytest.mark.parametrize("host", [b"xn--", b"[::1", b"a b", b"\xff\xfe", b"x:99999999", b"a." * 300, b""])
def test_no_host_is_too_odd(server: GunicornProcess, host: bytes) -> None:
    for path in (b"/health/live", b"/v1//models"):
        received = talk(server, b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\nX-Api-Key: " + KEY + b"\r\n\r\n")
        assert statuses(received)[0] in (200, 400, 404)


def test_a_worker_is_never_replaced(server: GunicornProcess, start_gunicorn: Callable[..., GunicornProcess]) -> None:
    fresh = start_gunicorn()
    for data in (*GARBAGE.values(), *SMUGGLING.values()):
        talk(fresh, data)
    assert eventually(lambda: httpx.get(f"{fresh.url}/health/live", timeout=20).status_code == 200)
    assert fresh.log.count('"tokenizer.loaded"') == 1
