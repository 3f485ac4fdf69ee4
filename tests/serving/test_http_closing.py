"""A worker that ends lets its streams finish and leaves nobody waiting; one that writes gives slow readers their time."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fake_engine import Gate, say
from gunicorn_process import GunicornProcess, eventually

from paddle_ds_serving.http_pieces import PIECE_BYTES, in_pieces

Start = Callable[..., GunicornProcess]


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionError:
        return True
    return False


def test_a_server_that_stops_takes_no_connection_while_its_streams_go_on(start_gunicorn: Start) -> None:
    gate = threading.Event()
    server = start_gunicorn(say("Let</think>2", Gate(gate), "Hello"), num_workers=2)
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(line for line in lines if '"content":"2"' in line)
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: is_refused(server.port))
        assert all(is_refused(server.port) for _ in range(20))
        assert server.process.poll() is None
        gate.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("num_bytes", "sizes"),
    [
        (0, [0]),
        (1, [1]),
        (PIECE_BYTES, [PIECE_BYTES]),
        (PIECE_BYTES + 1, [PIECE_BYTES, 1]),
        (3 * PIECE_BYTES, [PIECE_BYTES] * 3),
    ],
)
def test_bodies_are_written_in_pieces(num_bytes: int, sizes: list[int]) -> None:
    data = bytes(index % 251 for index in range(num_bytes))
    pieces = list(in_pieces(lambda environ, start_response: [data])({}, None))
    assert [len(piece) for piece in pieces] == sizes
    assert b"".join(pieces) == data


def test_what_is_closed_closes_the_body() -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"x"

        def close(self) -> None:
            closed.append(True)

    in_pieces(lambda environ, start_response: Body())({}, None).close()
    in_pieces(lambda environ, start_response: [b"x"])({}, None).close()  # a list has nothing to close
    assert closed == [True]


def test_a_client_that_reads_slowly_and_steadily_gets_all(start_gunicorn: Start) -> None:
    server = start_gunicorn(more_environ={"PADDLE_DS_WRITE_TIMEOUT_S": "1"})
    body = json.dumps({"prompt": "Hello " * 120_000, "return_token_strs": True}).encode()
    head = f"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)  # as on Ethernet, or the kernel takes it all
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(f"{head}connection: close\r\n\r\n".encode() + body)
        received = b""
        while data := connection.recv(64 * 1024):
            received += data
            time.sleep(0.1)  # more than the limit for the whole, less for each piece
    answer = json.loads(received.partition(b"\r\n\r\n")[2])
    assert answer["count"] == len(answer["token_strs"])
    assert "client.stalled" not in server.log


@pytest.mark.parametrize(("num_writes", "error"), [(1, "client_gone"), (2, "client_gone"), (3, None)])
def test_a_stream_whose_last_write_failed_did_not_end_well(
    make_server: Callable[..., Any], caplog: pytest.LogCaptureFixture, num_writes: int, error: str | None
) -> None:
    caplog.set_level("INFO", "paddle_ds_serving.request_log")
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
    response = make_server(burst=True).client.post("/v1/chat/completions", json=body)
    writes = iter(response.response)
    taken = list(itertools.islice(writes, num_writes))  # the answer, its end, and that there is no more
    assert taken[-1].endswith(b"data: [DONE]\n\n") == (num_writes > 1)
    response.close()
    (line,) = [record.paddle_ds_fields for record in caplog.records if record.getMessage() == "http.request"]
    assert line.get("error_code") == error
