"""Traces, as a collector gets them."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from fake_engine import ANSWERS, Fail, Gate, say
from gunicorn_process import eventually
from trace_collector import Collector

from paddle_ds import settings
from paddle_ds.errors import ConfigError, EngineDied, ServerOverloaded
from paddle_ds_serving import preflight
from paddle_ds_serving.tracing.install import EXTENSION

CHAT = "POST /v1/chat/completions"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SECRET = "the walrus is at midnight"
SERVER_KIND = 2


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def trace(make_server, collector, monkeypatch):
    """A server that sends its spans when it is told to, and never by itself; ``read(server)`` tells it to."""
    servers = []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")

    def make(*args, **options):
        environ = {"PADDLE_DS_TRACING": "1", **options.pop("environ", {})}
        servers.append(make_server(*args, environ=environ, **options))
        return servers[-1]

    yield make
    collector.answering.set()
    for server in servers:
        server.app.extensions[EXTENSION].close()


def flush(server):
    server.app.extensions[EXTENSION].flush()


def logged(caplog):
    return [line.paddle_ds_fields for line in caplog.records if line.getMessage() == "http.request"]


def test_a_request_is_a_server_span_with_its_phases_inside(trace, collector, caplog):
    server = trace()
    with caplog.at_level(logging.INFO):
        response = server.chat(model="tiny-r1")
    flush(server)
    root = collector.named(CHAT)
    phases = [collector.named(name) for name in ("prompt", "first token", "decode")]
    assert (root.kind, root.parent_id, root.is_error) == (SERVER_KIND, "", False)
    assert {phase.parent_id for phase in phases} == {root.span_id}
    assert {span.trace_id for span in collector.spans} == {root.trace_id} == {logged(caplog)[0]["trace_id"]}
    borders = [root.start_ns] + [time_ns for phase in phases for time_ns in (phase.start_ns, phase.end_ns)] + [root.end_ns]
    assert borders == sorted(borders)
    assert [phase.attributes for phase in phases] == [{}, {"paddle_ds.queue_s": 0.01}, {"paddle_ds.decode_s": pytest.approx(0.2)}]
    usage = response.json["usage"]
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "user_agent.original": response.request.user_agent.string,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "paddle-ds",
        "gen_ai.request.model": "tiny-r1",
        "gen_ai.request.stream": False,
        "gen_ai.request.choice.count": 1,
        "gen_ai.response.model": "tiny-r1",
        "gen_ai.response.id": response.json["id"],
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 3,
        "paddle_ds.request_id": response.headers["x-request-id"],
    }
    assert root.resource["service.name"] == "paddle-ds"
    assert collector.headers[0]["path"] == "/v1/traces"


def test_opentelemetrys_own_variables_count(trace, collector, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "r1 in Oslo")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/elsewhere")
    server = trace()
    server.get("/v1/models")
    flush(server)
    assert collector.named("GET /v1/models").resource["service.name"] == "r1 in Oslo"
    assert (collector.headers[0]["x-tenant"], collector.headers[0]["path"]) == ("blue", "/elsewhere")


@pytest.mark.parametrize("variable", ["OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER"])
def test_a_server_that_samples_nothing_answers_all_the_same(trace, collector, monkeypatch, variable):
    monkeypatch.setenv(variable, {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_SAMPLER": "always_off"}[variable])
    server = trace()
    assert server.chat().status_code == 200
    flush(server)
    assert collector.spans == []


def test_the_clients_trace_goes_on(trace, collector, caplog):
    server = trace()
    with caplog.at_level(logging.INFO):
        server.post("/generate", {"prompt": "Hello"}, headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    flush(server)
    root = collector.named("POST /generate")
    assert (root.trace_id, root.parent_id) == (TRACE_ID, PARENT_ID)
    assert logged(caplog)[0]["trace_id"] == TRACE_ID


def test_what_the_client_does_not_sample_is_not_sent_but_its_line_names_the_trace(trace, collector, caplog):
    server = trace()
    with caplog.at_level(logging.INFO):
        server.post("/generate", {"prompt": "Hello"}, headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
    flush(server)
    assert collector.spans == []
    assert logged(caplog)[0]["trace_id"] == TRACE_ID


@pytest.mark.parametrize("header", ["", "00-zz", f"00-{'0' * 32}-{PARENT_ID}-01", f"ff-{TRACE_ID}-{PARENT_ID}-01", "0" * 5000])
def test_a_broken_traceparent_begins_a_trace(trace, collector, header):
    server = trace()
    assert server.get("/v1/models", headers={"traceparent": header}).status_code == 200
    flush(server)
    root = collector.named("GET /v1/models")
    assert root.parent_id == ""
    assert root.trace_id not in (TRACE_ID, "0" * 32)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/v2/health/ready", "/metrics"])
def test_probes_and_scrapes_are_not_traced(trace, collector, caplog, path):
    server = trace()
    with caplog.at_level(logging.DEBUG):
        server.get(path)
    flush(server)
    assert collector.spans == []
    assert "trace_id" not in logged(caplog)[0]


def test_a_streams_span_ends_when_the_stream_ends(trace, collector):
    gate = Gate(threading.Event())
    server = trace(say("Hello", gate, " world"))
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with server.client.post("/v1/chat/completions", json=body) as response:
        events = iter(response.response)
        assert b"data: " in next(events)
        flush(server)
        assert collector.spans == []
        gate.opened.set()
        assert b"[DONE]" in b"".join(events)
        flush(server)
        assert collector.spans == []
    flush(server)
    root = collector.named(CHAT)
    assert root.attributes["gen_ai.request.stream"] is True
    assert root.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert root.end_ns >= collector.named("decode").end_ns


def test_an_error_inside_a_stream_marks_the_span_and_the_phase(trace, collector):
    server = trace(say("Hello", Fail(EngineDied("it died"))))
    assert "engine_died" in server.chat(stream=True).text
    flush(server)
    root = collector.named(CHAT)
    assert root.is_error
    assert root.attributes["http.response.status_code"] == 200
    assert (root.attributes["error.type"], root.attributes["paddle_ds.error_code"]) == ("engine_died", "engine_died")
    assert {span.name for span in collector.spans if span.is_error} == {CHAT, "decode"}


def test_a_failure_before_the_first_token_has_no_decode(trace, collector):
    server = trace(say(Fail(EngineDied("it died"))))
    server.chat()
    flush(server)
    assert {span.name for span in collector.spans if span.is_error} == {CHAT, "first token"}
    assert "decode" not in {span.name for span in collector.spans}


def test_a_client_that_leaves_is_no_error_of_the_server(trace, collector):
    server = trace(say("Hello", Gate(threading.Event())))
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with server.client.post("/v1/chat/completions", json=body) as response:
        next(iter(response.response))
    flush(server)
    root = collector.named(CHAT)
    assert not any(span.is_error for span in collector.spans)
    assert root.attributes["paddle_ds.error_code"] == "client_gone"
    assert root.attributes["gen_ai.response.finish_reasons"] == ["abort"]


def test_a_refusal_marks_the_span_only_where_the_server_is_at_fault(trace, collector):
    server = trace()
    server.chat(temperature="hot")
    server.engine.refusal = ServerOverloaded("full")
    server.complete()
    flush(server)
    mistake, overload = collector.named(CHAT), collector.named("POST /v1/completions")
    assert (mistake.is_error, mistake.attributes["http.response.status_code"]) == (False, 400)
    assert "error.type" not in mistake.attributes
    assert (overload.is_error, overload.attributes["error.type"]) == (True, "server_overloaded")
    assert len(collector.spans) == 2


def test_a_refused_key_is_traced_too(trace, collector):
    server = trace(environ={"PADDLE_DS_API_KEY": "0123456789abcdef"})
    server.chat()
    flush(server)
    assert collector.named(CHAT).attributes["paddle_ds.error_code"] == "invalid_api_key"


def test_what_has_no_route_leaves_neither_path_nor_method(trace, collector):
    server = trace()
    server.client.open("/tell/me/secrets", method="WALRUS", buffered=True)
    flush(server)
    root = collector.named("HTTP")
    assert root.attributes["http.request.method"] == "_OTHER"
    assert not {"url.path", "http.route"} & set(root.attributes)
    assert b"secrets" not in collector.bodies[0]


def test_no_text_of_prompts_or_answers_leaves(trace, collector):
    server = trace(say(f"{SECRET}</think>{SECRET}"), burst=True, environ={"PADDLE_DS_LOG_PROMPTS": "1"})
    message = {"role": "user", "content": SECRET}
    for stream in (False, True):
        assert SECRET in server.chat(messages=[message], stream=stream, max_tokens=35).text
        server.complete(prompt=SECRET, stream=stream, echo=True)
    server.post("/generate", {"prompt": SECRET})
    server.post("/tokenize", {"prompt": SECRET})
    server.post(f"/v1/completions?{SECRET}", {"prompt": SECRET, SECRET: SECRET})
    server.chat(messages=[{**message, SECRET: SECRET}])
    server.chat(messages=[message], model=SECRET)
    server.engine.actor.script = say(Fail(EngineDied(SECRET)))
    server.chat(messages=[message], stream=True)
    flush(server)
    assert len([span for span in collector.spans if span.kind == SERVER_KIND]) == 10
    assert not any(word.encode() in body for body in collector.bodies for word in ("walrus", "midnight"))


def test_a_collector_that_is_away_costs_spans_and_one_line(trace, collector, monkeypatch, caplog):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, so nobody else gets it; not listening, so it refuses
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
        server = trace()
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert server.chat().status_code == 200
                flush(server)
    troubles = [line.paddle_ds_fields for line in caplog.records if line.getMessage() == "tracing.trouble"]
    assert len(troubles) == 1
    assert troubles[0]["source"].startswith("opentelemetry.")
    assert collector.bodies == []


def test_a_collector_that_hangs_delays_no_request_and_the_end_only_shortly(start_gunicorn):
    collector = Collector(answers=False)
    try:
        environ = {"PADDLE_DS_TRACING": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "10"}
        server = start_gunicorn(more_environ=environ)
        ask = {"messages": [{"role": "user", "content": "Hello"}]}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=ask).status_code == 200
        assert eventually(lambda: collector.bodies)
        for _ in range(20):
            assert httpx.post(f"{server.url}/v1/chat/completions", json={**ask, "stream": True}).text.endswith("[DONE]\n\n")
        assert len(collector.bodies) == 1  # it was hanging all the time
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        assert "tracing.not_flushed" in server.log
    finally:
        collector.close()


def test_workers_send_what_they_have_before_they_end(start_gunicorn, collector):
    environ = {
        "PADDLE_DS_TRACING": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
    }
    server = start_gunicorn(ANSWERS, num_workers=2, more_environ=environ)
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    for _ in range(5):
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
        assert "[DONE]" in httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers).text
    assert collector.spans == []
    server.process.terminate()
    assert server.process.wait(timeout=20) == 0
    roots = [span for span in collector.spans if span.name == CHAT]
    assert [(root.trace_id, root.parent_id) for root in roots] == [(TRACE_ID, PARENT_ID)] * 5
    assert len(collector.spans) == 20
    lines = [json.loads(line) for line in server.log.splitlines() if '"http.request"' in line]
    assert [line["trace_id"] for line in lines] == [TRACE_ID] * 5
    assert {line["response_id"] for line in lines} == {root.attributes["gen_ai.response.id"] for root in roots}


def test_nothing_that_makes_or_sends_spans_is_loaded_where_tracing_is_off(tokenizer_dir):
    code = (
        "import sys; from pathlib import Path; import paddle_ds_serving.wsgi, paddle_ds_serving.command\n"
        "from fake_engine import FakeEngine; from paddle_ds_serving.app import create_app\n"
        f"create_app(FakeEngine(Path({str(tokenizer_dir)!r}))).test_client().get('/v1/models', buffered=True)\n"
        # redis-py loads the SDK's metrics by itself, wherever they are installed
        "ours = ('opentelemetry.exporter', 'opentelemetry.sdk.trace', 'paddle_ds_serving.tracing.s')\n"
        "sys.exit(any(name.startswith(ours) for name in sys.modules))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_DS_")}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == 0


def test_without_tracing_no_line_names_a_trace(server, caplog):
    with caplog.at_level(logging.INFO):
        server.get("/v1/models", headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    assert "trace_id" not in logged(caplog)[0]


def test_a_missing_package_is_an_error_before_anything_starts_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    preflight.check(settings.load({}))
    with pytest.raises(ConfigError, match=r"python -m pip install 'paddle-ds\[tracing\]'"):
        preflight.check(settings.load({"PADDLE_DS_TRACING": "1"}))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "traces are sent with 'http/protobuf' only"),
        ("OTEL_TRACES_EXPORTER", "console", "traces are sent with 'otlp' only"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "OpenTelemetry refuses its settings"),
    ],
)
def test_what_opentelemetry_would_not_do_is_an_error(make_server, monkeypatch, name, value, reason):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=reason):
        make_server(environ={"PADDLE_DS_TRACING": "1"})
