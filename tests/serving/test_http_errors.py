"""Errors that are nobody's body: routes, methods, models, the engine, defects."""

from __future__ import annotations

import dataclasses
import logging
import threading

import msgspec
import pytest
from fake_engine import Gate, ready_info, say
from tiny_tokenizer import write_tokenizer

from paddle_ds.errors import CheckpointNotFound, ServerOverloaded

KEYS = {"message", "type", "param", "code"}


def error_of(response, status):
    assert response.status_code == status, response.data
    assert response.headers["content-type"] == "application/json"
    assert response.json.keys() == {"error"}
    assert response.json["error"].keys() == KEYS
    assert response.headers["x-request-id"]
    return response.json["error"]


def test_unknown_route(server):
    assert error_of(server.get("/v1/nothing"), 404)["code"] == "not_found"


def test_a_path_with_two_slashes_is_another_one_and_redirects_nobody(server):
    response = server.get("/v1//models", headers={"host": "elsewhere.example"})
    assert (response.status_code, response.headers.get("location")) == (404, None)


def test_wrong_method_names_the_right_one(server):
    response = server.get("/v1/chat/completions")
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert "POST" in response.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate", "/tokenize"])
def test_another_model(server, path):
    body = {"messages": [{"role": "user", "content": "2"}]} if "chat" in path else {"prompt": "2"}
    error = error_of(server.post(path, {**body, "model": "gpt-4"}), 404)
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "not_found_error")
    assert "tiny-r1" in error["message"]
    assert server.post(path, {**body, "model": "tiny-r1"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny-r1"])
def test_reading_routes_need_the_model_too(server, path):
    server.engine.connected = False
    error_of(server.get(path), 503)


@pytest.mark.parametrize(("state", "says"), [("loading", "50%"), ("stopping", "shutting down"), ("failed", "no such directory")])
def test_engine_that_is_not_ready(server, state, says):
    error = CheckpointNotFound("no such directory").info() if state == "failed" else None
    server.engine.info = msgspec.structs.replace(server.engine.info, state=state, progress=0.5, error=error)
    response = server.chat()
    error = error_of(response, 503)
    assert (error["code"], error["type"]) == ("engine_unavailable", "unavailable_error")
    assert says in error["message"]
    assert response.headers["retry-after"] == "2"
    assert response.headers["retry-after-ms"] == "2000"


def test_engine_that_has_not_spoken(server):
    server.engine.info = None
    error_of(server.chat(), 503)


def test_engine_that_is_full(server):
    server.engine.refusal = ServerOverloaded("2048 requests wait")
    response = server.chat()
    assert error_of(response, 503)["code"] == "server_overloaded"
    assert response.headers["retry-after"] == "1"


def test_worker_that_is_full_refuses_at_once_and_goes_on_later(make_server):
    gate = threading.Event()
    server = make_server(say("</think>2", Gate(gate), "Hello"))
    server.app.extensions["paddle_ds"].limit(1)
    body = {"messages": [{"role": "user", "content": "2"}], "stream": True}
    running = server.client.post("/v1/chat/completions", json=body)
    response = server.chat()
    assert error_of(response, 503)["code"] == "server_overloaded"
    assert server.get("/health").status_code == 200
    gate.set()
    assert running.data.endswith(b"[DONE]\n\n")
    running.close()
    assert server.chat().status_code == 200


def test_refused_request_takes_no_slot(server):
    server.app.extensions["paddle_ds"].limit(1)
    server.engine.refusal = ServerOverloaded("full")
    for _ in range(3):
        assert server.chat().status_code == 503
    server.engine.refusal = None
    assert server.chat().status_code == 200
    assert server.chat(stream=True).status_code == 200
    assert server.chat().status_code == 200


def test_defect_tells_the_client_nothing_but_where_to_look(server, caplog):
    server.engine.refusal = RuntimeError("secret")  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR, logger="paddle_ds_serving"):
        error = error_of(server.chat(), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    assert "secret" in caplog.text


def test_request_id_is_made_up_or_taken_over(server):
    assert server.get("/version").headers["x-request-id"].startswith("req_")
    assert server.get("/version", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("inbound", ["a b", "x" * 129, "a;b", '"'])
def test_request_id_that_could_break_a_log_is_replaced(server, inbound):
    assert server.get("/version", headers={"x-request-id": inbound}).headers["x-request-id"].startswith("req_")


def test_tokenizer_is_loaded_again_for_another_engine(server, tmp_path):
    assert server.chat().status_code == 200
    directory = write_tokenizer(tmp_path / "other", template=None)
    server.engine.info = ready_info(directory, boot_id="boot-2")
    assert server.chat().json["error"]["code"] == "chat_template_error"


def test_broken_tokenizer_is_a_servers_error(server, tmp_path):
    server.engine.info = ready_info(tmp_path, boot_id="boot-2")
    assert error_of(server.chat(), 500)["code"] == "tokenizer_error"
    assert server.get("/health").status_code == 503


def test_settings_of_the_process_are_the_default(tokenizer_dir, monkeypatch):
    from fake_engine import FakeEngine

    from paddle_ds_serving.app import create_app

    monkeypatch.setenv("PADDLE_DS_SSE_PING_S", "7")
    app = create_app(FakeEngine(tokenizer_dir))
    assert dataclasses.asdict(app.extensions["paddle_ds"].settings)["sse_ping_s"] == 7.0
