"""``/openapi.json``: it has every route and no other, and real answers are as it says."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from access_keys import EACH, bearer, entry, write_keys
from fake_engine import Fail, say
from schema_check import problems
from tiny_tokenizer import write_tokenizer

from paddle_ds.config.engine import EngineConfig
from paddle_ds.errors import EngineDied
from paddle_ds_serving.access import scopes
from paddle_ds_serving.openapi import OPERATIONS
from paddle_ds_serving.openapi_document import document, errors_of
from paddle_ds_serving.protocol.answers import Updated
from paddle_ds_serving.protocol.body import decode
from paddle_ds_serving.supervision import control
from paddle_ds_serving.supervision.canary import CanaryConfig
from paddle_ds_serving.supervision.health import HealthWatch
from paddle_ds_serving.supervision.operations import operations
from paddle_ds_serving.supervision.updater import Place, Updater

UPDATED = Updated("/models/new", "w8a8-1", "w8a8-0", True, "beside", 1.5)
BODIES = [operation for operation in OPERATIONS if operation.body is not None]
STREAMS = [operation for operation in OPERATIONS if operation.event is not None]


def names(operations_: Any) -> list[Any]:
    return [pytest.param(operation, id=operation.name) for operation in operations_]


@pytest.fixture(scope="module")
def doc() -> dict[str, Any]:
    return json.loads(json.dumps(document()))


@pytest.fixture
def supervised(make_server, tmp_path, tokenizer_dir):
    """A server with keys, feedback and a passport, and a supervisor to ask, whose fleet is a stand-in."""
    with tempfile.TemporaryDirectory(prefix="pds-") as run_dir:
        directory = write_tokenizer(tmp_path / "tiny-r1")
        (directory / "passport.json").write_text('{"version": 1}')
        environ = write_keys(tmp_path / "keys.yaml", *EACH, entry("all", "infer", "metrics", "admin"))
        environ["PADDLE_DS_FEEDBACK_DIR"] = str(tmp_path / "feedback")
        environ["PADDLE_DS_ENGINE_SOCKET"] = str(Path(run_dir) / "engine.sock")
        server = make_server(directory=directory, environ=environ)
        config = EngineConfig(model=str(directory))
        child = SimpleNamespace(pid=7, num_starts=1)
        unit = SimpleNamespace(client=server.engine, child=child, config=config, version="", num_requests=None)
        fleet: Any = SimpleNamespace(current=unit, generation=1, refusal="", draining=[unit], num_restarts=0)
        fleet.refuse = lambda why: setattr(fleet, "refusal", why)
        updater = Updater(fleet, CanaryConfig("Hello", None), 60.0)
        updater.history = [Place(config, "w8a8-0")]
        health = HealthWatch(fleet, updater, CanaryConfig("Hello", None), 1000.0)
        handlers = operations(fleet, updater, health) | dict.fromkeys(("load", "rollback"), lambda question: UPDATED)
        listener = control.ControlServer(Path(run_dir), handlers)
        yield server
        listener.close()


def ask(server, operation, **options):
    path = re.sub("<[^>]+>", "tiny-r1", operation.rule)
    body = {} if operation.body is None else {"json": options.pop("body", operation.example)}
    return server.client.open(path, method=operation.method, buffered=True, headers=bearer("all"), **body)


def shown(doc, operation):
    """What the document has for an operation."""
    return doc["paths"][re.sub(r"<(?:path:)?(\w+)>", r"{\1}", operation.rule)][operation.method.lower()]


def test_the_table_has_the_applications_routes_and_no_other(server):
    found = {(method, rule.rule) for rule in server.app.url_map.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}}
    assert sorted((operation.method, operation.rule) for operation in OPERATIONS) == sorted(found)


def test_the_document_is_served_and_has_the_table(server, doc):
    served = server.get("/openapi.json")
    assert (served.status_code, served.content_type, served.json) == (200, "application/json", doc)
    assert doc["openapi"] == "3.1.0"
    written = {(method.upper(), path) for path, methods in doc["paths"].items() for method in methods}
    assert written == {(one.method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", one.rule)) for one in OPERATIONS}
    ids = [one["operationId"] for methods in doc["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)


def test_every_reference_leads_somewhere_and_no_schema_is_unused(doc):
    used = set(re.findall(r'"\$ref": "#/components/(\w+)/([^"]+)"', json.dumps(doc)))
    parts = {(part, name) for part in ("schemas", "headers") for name in doc["components"][part]}
    assert used == parts


def test_texts_are_for_readers_of_the_document(doc):
    assert not re.search(r"``|:(?:meth|class|func|mod):", json.dumps(doc))


@pytest.mark.parametrize("operation", names(OPERATIONS))
def test_the_scope_of_each_route(doc, operation):
    scope = scopes.scope_of(operation.rule)
    wanted = [] if scope is None else [{"bearer": [scope.value]}, {"x-api-key": [scope.value]}]
    assert shown(doc, operation)["security"] == wanted
    assert set(doc["components"]["securitySchemes"]) == {"bearer", "x-api-key"}


@pytest.mark.parametrize("operation", names(BODIES))
def test_examples_are_requests(doc, operation):
    content = shown(doc, operation)["requestBody"]["content"]["application/json"]
    assert problems(content["example"], content["schema"], doc["components"]["schemas"]) == []
    body = decode(json.dumps(content["example"]).encode(), operation.body, {})
    if hasattr(body, "check"):
        body.check()


@pytest.mark.parametrize("operation", names(OPERATIONS))
def test_a_real_answer_is_as_the_document_says(supervised, doc, operation):
    response = ask(supervised, operation)
    answer = shown(doc, operation)["responses"][str(response.status_code)]
    assert response.status_code == operation.status, response.data
    assert answer["headers"].keys() <= {name.lower() for name, _ in response.headers} | {"x-cache", "x-weight-version"}
    assert response.mimetype in answer["content"]
    if operation.answer is not None:
        assert problems(response.json, answer["content"]["application/json"]["schema"], doc["components"]["schemas"]) == []


@pytest.mark.parametrize("more", [{}, {"return_token_ids": True, "logprobs": 2}], ids=["plain", "tokens"])
@pytest.mark.parametrize("operation", names(STREAMS))
def test_events_are_as_the_document_says(supervised, doc, operation, more):
    body = {**operation.example, "stream": True}
    if operation.name != "generate":
        logprobs = {"logprobs": True, "top_logprobs": 2} if operation.name == "createChatCompletion" and more else {}
        body |= {"stream_options": {"include_usage": True}} | more | logprobs
    response = ask(supervised, operation, body=body)
    content = shown(doc, operation)["responses"]["200"]["content"][response.mimetype]
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    assert len(events) > 2
    for event in events:
        assert problems(json.loads(event), content["x-event-schema"], doc["components"]["schemas"]) == []


@pytest.mark.parametrize("operation", names(one for one in OPERATIONS if one.unwell))
def test_probes_while_no_requests_are_answered(make_server, doc, operation):
    server = make_server()
    server.engine.connected = False
    server.engine.info = msgspec.structs.replace(server.engine.info, state="failed", model=None)
    response = ask(server, operation)
    answer = shown(doc, operation)["responses"]["503"]
    assert response.status_code == 503
    assert answer["headers"].keys() <= {name.lower() for name, _ in response.headers}
    assert problems(response.json, answer["content"]["application/json"]["schema"], doc["components"]["schemas"]) == []


def refusals(server, operation):
    """Answers that are errors, to requests of every wrong kind."""
    path = re.sub("<[^>]+>", "other", operation.rule)
    open_ = server.client.open
    if scopes.scope_of(operation.rule) is not None:
        yield open_(path, method=operation.method, buffered=True)
        for who in ("inferer", "scraper", "admin"):
            if who != {"infer": "inferer", "metrics": "scraper", "admin": "admin"}[scopes.scope_of(operation.rule).value]:
                yield open_(path, method=operation.method, headers=bearer(who), buffered=True)
    if "<" in operation.rule:
        yield open_(path, method=operation.method, headers=bearer("all"), buffered=True)
    if operation.body is not None:
        everything = {"headers": bearer("all"), "method": operation.method, "buffered": True}
        yield open_(path, data=b"{}", content_type="text/plain", **everything)
        for body in (b"", b"{", b"[]", b'{"nonsense": 1}', b"x" * 2048):
            yield open_(path, data=body, content_type="application/json", **everything)


@pytest.mark.parametrize("operation", names(OPERATIONS))
def test_refusals_are_in_the_document(make_server, tmp_path, doc, operation):
    environ = write_keys(tmp_path / "keys.yaml", *EACH, entry("all", "infer", "metrics", "admin"))
    environ["PADDLE_DS_FEEDBACK_DIR"] = str(tmp_path)
    server = make_server(environ=environ, max_body_bytes=1024)
    for response in refusals(server, operation):
        answer = shown(doc, operation)["responses"][str(response.status_code)]
        assert response.json["error"]["code"] in errors_of(operation)[response.status_code]
        assert f"`{response.json['error']['code']}`" in answer["description"]
        assert problems(response.json, answer["content"]["application/json"]["schema"], doc["components"]["schemas"]) == []
        assert answer["headers"].keys() <= {name.lower() for name, _ in response.headers}


def test_a_failure_inside_the_engine_is_in_the_document(make_server, doc):
    server = make_server(say(Fail(EngineDied("gone"))))
    for operation in STREAMS:
        response = ask(server, operation)
        assert (response.status_code, response.json["error"]["code"]) == (503, "engine_died")
        assert "`engine_died`" in shown(doc, operation)["responses"]["503"]["description"]


def test_the_document_follows_the_table():
    fewer = document(dataclasses.replace(one) for one in OPERATIONS if one.tag != "admin")
    assert not any(path.startswith("/admin") for path in fewer["paths"])
    assert "AdminStatus" not in fewer["components"]["schemas"]


@pytest.mark.parametrize(
    "value", [{}, {"id": 1}, {"id": "x", "more": 1}, {"id": True}, [], {"id": "x", "list": ["a"]}, {"id": "x", "kind": "b"}]
)
def test_the_check_finds_faults(value):
    schema = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "list": {"type": "array", "items": {"type": "integer"}},
            "kind": {"enum": ["a"]},
        },
        "required": ["id"],
    }
    assert problems({"id": "x", "list": [1], "kind": "a"}, schema, {}) == []
    assert problems(value, schema, {})
