"""The application under a real Gunicorn: streams on the wire, clients that go away, workers that share their counts."""

from __future__ import annotations

import json
import socket
import threading

import httpx
import pytest
from fake_engine import Gate, Sleep, say
from gunicorn_process import eventually

from paddle_ds.errors import CheckpointNotFound

BODY = {"messages": [{"role": "user", "content": "Hello"}]}


def raw_post(port: int, body: dict[str, object]) -> socket.socket:
    """Send a request and leave the reading to the caller."""
    data = json.dumps(body).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
    ]
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
    return connection


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        received = connection.recv(65536)
        assert received, data
        data += received
    return data


def aborted_last(server) -> bool:
    submitted = server.engine.actor.submitted
    return bool(submitted) and submitted[-1].request_id in server.engine.actor.aborted


def test_stream_arrives_event_by_event(start_gunicorn):
    gate = threading.Event()
    server = start_gunicorn(say("Let</think>2", Gate(gate), "Hello"))
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json={**BODY, "stream": True}, timeout=30) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["transfer-encoding"] == "chunked"
        lines = response.iter_lines()
        for line in lines:
            if '"content":"2"' in line:
                break
        gate.set()  # only now can the rest exist
        rest = list(lines)
    assert any('"content":"Hello"' in line for line in rest)
    assert [line for line in rest if line][-1] == "data: [DONE]"


def test_client_that_leaves_a_flowing_stream_aborts_it(start_gunicorn):
    server = start_gunicorn(lambda _: (line for _ in range(100_000) for line in ("2", Sleep(0.01))))
    connection = raw_post(server.port, {**BODY, "stream": True, "max_tokens": 4000})
    read_until(connection, b'"reasoning_content":"2"')
    connection.close()
    assert eventually(lambda: aborted_last(server))
    assert eventually(lambda: '"finish_reasons": "abort"' in server.log)


def test_client_that_leaves_a_silent_stream_aborts_it(start_gunicorn):
    server = start_gunicorn(say("Let", Gate(threading.Event())), ping_s=600)
    connection = raw_post(server.port, {**BODY, "stream": True})
    read_until(connection, b'"reasoning_content":"Let"')
    connection.close()
    assert eventually(lambda: aborted_last(server))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_client_that_leaves_before_the_first_token_aborts(start_gunicorn, stream):
    server = start_gunicorn(say(Gate(threading.Event())))
    connection = raw_post(server.port, {**BODY, "stream": stream})
    assert eventually(lambda: server.engine.actor.submitted)
    connection.close()
    assert eventually(lambda: aborted_last(server))


def test_client_that_resets_its_connection_aborts(start_gunicorn):
    server = start_gunicorn(say("Let", Gate(threading.Event())))
    connection = raw_post(server.port, {**BODY, "stream": True})
    read_until(connection, b'"reasoning_content":"Let"')
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close with RST
    connection.close()
    assert eventually(lambda: aborted_last(server))


def test_client_that_pipelines_is_not_taken_for_gone(start_gunicorn):
    gate = threading.Event()
    server = start_gunicorn(say("</think>2", Gate(gate), "Hello"))
    with raw_post(server.port, {**BODY, "stream": True}) as connection:
        read_until(connection, b'"content":"2"')
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        threading.Timer(1.5, gate.set).start()
        data = read_until(connection, b'"version"')
    assert data.index(b"[DONE]") < data.index(b'"version"')
    assert server.engine.actor.aborted == set()


def test_body_over_the_limit_is_told_so(start_gunicorn):
    server = start_gunicorn()
    response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x" * (17 * 2**20)}, timeout=30)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_chunked_body_is_read_and_bounded(start_gunicorn):
    server = start_gunicorn()
    headers = {"content-type": "application/json"}
    ok = httpx.post(f"{server.url}/v1/chat/completions", content=iter([json.dumps(BODY).encode()]), headers=headers)
    assert ok.status_code == 200
    much = (b" " * 2**20 for _ in range(17))
    over = httpx.post(f"{server.url}/v1/chat/completions", content=much, headers=headers, timeout=30)
    assert over.status_code == 413


def test_counts_of_all_workers_are_added_and_the_engines_are_not(start_gunicorn):
    server = start_gunicorn(num_workers=2)
    for _ in range(8):  # a new connection each time, so that both workers get some
        assert httpx.post(f"{server.url}/v1/chat/completions", json=BODY, timeout=30).status_code == 200
    server.engine.broadcast_stats()

    def found():
        text = httpx.get(f"{server.url}/metrics").text
        wanted = ('paddle_ds:request_success_total{finished_reason="stop"} 8.0', "paddle_ds:num_requests_running 2.0")
        return all(line in text.splitlines() for line in wanted)

    assert eventually(found)


def test_streams_that_run_at_stop_are_finished(start_gunicorn):
    gate = threading.Event()
    server = start_gunicorn(say("</think>2", Gate(gate), "Hello"))
    with raw_post(server.port, {**BODY, "stream": True}) as connection:
        read_until(connection, b'"content":"2"')
        server.process.terminate()
        threading.Timer(0.5, gate.set).start()
        assert b'"content":"Hello"' in read_until(connection, b"[DONE]")
    assert server.process.wait(timeout=30) == 0
    assert list(server.runtime_dir.iterdir()) == []  # the metrics directory is gone


def test_engine_that_failed_is_reported_by_every_route(start_gunicorn):
    server = start_gunicorn()
    server.engine.fail_with(CheckpointNotFound("no such directory").info())
    assert eventually(lambda: httpx.get(f"{server.url}/health/live").status_code == 503)
    response = httpx.post(f"{server.url}/v1/chat/completions", json=BODY)
    assert response.status_code == 503
    assert "no such directory" in response.json()["error"]["message"]


def test_every_worker_loads_the_tokenizer_without_being_asked(start_gunicorn):
    server = start_gunicorn(num_workers=3)
    assert eventually(lambda: server.log.count('"tokenizer.loaded"') == 3)
