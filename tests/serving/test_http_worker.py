"""What a slow or broken client can do to a worker: hold a thread of it for a bounded time, and nothing else."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from gunicorn_process import GunicornProcess, eventually

from paddle_ds_serving.http_worker import Linger

LIMITS = {"PADDLE_DS_HEADER_TIMEOUT_S": "1", "PADDLE_DS_BODY_TIMEOUT_S": "1", "PADDLE_DS_WRITE_TIMEOUT_S": "1"}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()

Start = Callable[..., GunicornProcess]


def connect(server: GunicornProcess, sent: bytes = b"", *, receive_bytes: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(sent)
    return connection


def answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """Status and JSON body of the answer, and that the connection is closed after it."""
    received = b""
    with connection:
        while data := connection.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)


def error_of(connection: socket.socket) -> tuple[int, object]:
    status, body = answer(connection)
    error = body["error"]
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["code"]


@pytest.mark.parametrize(
    "sent",
    [b"GET", HEAD + b"content-length: 100\r\n\r\n{", HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{"],
    ids=["header", "body", "chunk"],
)
def test_a_request_that_is_not_sent_in_time_is_told_so(start_gunicorn: Start, sent: bytes) -> None:
    server = start_gunicorn(more_environ=LIMITS)
    assert error_of(connect(server, sent)) == (408, "request_timeout")


def test_a_byte_now_and_then_does_not_help(start_gunicorn: Start) -> None:
    server = start_gunicorn(more_environ=LIMITS)
    connection = connect(server, b"GET /health HTTP/1.1\r\nhost: ")
    with contextlib.suppress(OSError):
        while True:
            connection.settimeout(0.2)
            try:
                assert connection.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                connection.sendall(b"x")
    connection.settimeout(20)
    assert error_of(connection) == (408, "request_timeout")


def test_a_kept_connection_gets_the_same_limits(start_gunicorn: Start) -> None:
    server = start_gunicorn(more_environ=LIMITS)
    connection = connect(server, b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    first = connection.recv(65536)
    assert first.startswith(b"HTTP/1.1 200")
    connection.sendall(b"GET /hea")
    assert error_of(connection) == (408, "request_timeout")


def test_slow_senders_do_not_keep_others_from_being_answered(start_gunicorn: Start) -> None:
    server = start_gunicorn(more_environ=LIMITS)  # 16 threads
    slow = [connect(server, b"POST /v1/chat") for _ in range(48)]
    assert httpx.get(f"{server.url}/health/live", timeout=20).status_code == 200
    for connection in slow:
        connection.close()


def test_a_client_that_reads_nothing_is_given_up(start_gunicorn: Start) -> None:
    server = start_gunicorn(more_environ=LIMITS)
    body = json.dumps({"prompt": "Hello " * 300_000, "return_token_strs": True}).encode()
    head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    connection = connect(server, head + body, receive_bytes=4096)
    assert eventually(lambda: "client.stalled" in server.log, 20)
    connection.settimeout(20)
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 20):
            received += len(data)
    assert 0 < received < 15_000_000  # what the kernel had taken, and no more
    connection.close()
    assert "Traceback" not in server.log


def test_clients_that_do_not_close_do_not_stop_a_worker(start_gunicorn: Start) -> None:
    server = start_gunicorn()
    open_connections = []
    for _ in range(100):  # two seconds each, if one waited for the other
        connection = connect(server, b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        while connection.recv(65536):
            pass
        open_connections.append(connection)
    assert httpx.get(f"{server.url}/health/live", timeout=20).status_code == 200
    for connection in open_connections:
        connection.close()


def test_no_more_connections_linger_than_there_are_places() -> None:
    linger = Linger()
    pairs = [socket.socketpair() for _ in range(100)]
    for ours, _ in pairs:
        linger.close(ours)
    closed = [ours.fileno() == -1 for ours, _ in pairs]
    assert closed[:64] == [False] * 64
    assert closed[64:] == [True] * 36
    for _, theirs in pairs:
        assert theirs.recv(1) == b""  # the end was told at once, to all
        theirs.close()
    assert eventually(lambda: all(ours.fileno() == -1 for ours, _ in pairs))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x00\x01\x02\x03\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: 1\r\n" % i for i in range(80)) + b"\r\n", 431),
        (HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", 400),
        (HEAD + b"transfer-encoding: br\r\n\r\n", 400),
        (HEAD + b"content-length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n", 400),
    ],
    ids=["bytes", "version", "line", "header", "headers", "smuggle", "coding", "length", "field"],
)
def test_what_is_not_http_is_refused_in_json(start_gunicorn: Start, sent: bytes, status: int) -> None:
    server = start_gunicorn()
    assert error_of(connect(server, sent)) == (status, "invalid_request")
    text = httpx.get(f"{server.url}/metrics", timeout=20).text
    assert f'http_requests_total{{method="unknown",route="unmatched",status="{status}"}} 1.0' in text
    assert "Traceback" not in server.log


def test_malformed_chunks_are_the_clients_fault(start_gunicorn: Start) -> None:
    server = start_gunicorn()
    status, code = error_of(connect(server, HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n"))
    assert (status, code) == (400, "invalid_request")


def test_tls_of_gunicorn_has_the_limits_too(start_gunicorn: Start, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made = subprocess.run([*make, "-out", str(certificate), "-keyout", str(key)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    options = f"--certfile {certificate} --keyfile {key}"
    server = start_gunicorn(more_environ={**LIMITS, "GUNICORN_CMD_ARGS": options}, scheme="https")
    trusting = ssl.create_default_context(cafile=str(certificate))
    trusting.check_hostname = False
    stalled = connect(server)  # says nothing where a handshake is due
    half = connect(server, b"\x16\x03\x01")
    secure = trusting.wrap_socket(connect(server))
    secure.sendall(HEAD + b"content-length: 100\r\n\r\n{")
    assert error_of(secure) == (408, "request_timeout")
    whole = trusting.wrap_socket(connect(server))
    whole.sendall(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY)
    assert answer(whole)[0] == 200
    with contextlib.suppress(ConnectionResetError):
        half.recv(65536)  # ends: the handshake has a limit
    half.close()
    stalled.close()
