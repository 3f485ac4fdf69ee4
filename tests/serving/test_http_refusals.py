"""What is refused, and how."""

from __future__ import annotations

import msgspec
import pytest

from paddle_ds_serving.protocol.chat import ChatRequest
from paddle_ds_serving.protocol.completions import CompletionRequest
from paddle_ds_serving.protocol.generate import GenerateRequest
from paddle_ds_serving.protocol.refused import CHAT, COMPLETIONS, GENERATE

CHAT_BODY = {"messages": [{"role": "user", "content": "Hello"}]}
TABLES = [
    ("/v1/chat/completions", CHAT_BODY, CHAT, ChatRequest),
    ("/v1/completions", {"prompt": "Hello"}, COMPLETIONS, CompletionRequest),
    ("/generate", {"prompt": "Hello"}, GENERATE, GenerateRequest),
]
CASES = [(path, body, name) for path, body, table, _ in TABLES for name in table]
ASKS_FOR_SOMETHING = {"x": "a value that is harmless nowhere"}


def assert_refused(response, param):
    assert response.status_code == 400, response.data
    error = response.json["error"]
    assert error["code"] == "unsupported_parameter"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize(("path", "body", "name"), CASES, ids=[f"{path}-{name}" for path, _, name in CASES])
def test_known_parameter_that_is_not_supported(server, path, body, name):
    assert_refused(server.post(path, {**body, name: ASKS_FOR_SOMETHING}), name)


@pytest.mark.parametrize(("path", "body", "name"), CASES, ids=[f"{path}-{name}" for path, _, name in CASES])
def test_null_asks_for_nothing(server, path, body, name):
    assert server.post(path, {**body, name: None}).status_code == 200


@pytest.mark.parametrize(("path", "table", "kind"), [(path, table, kind) for path, _, table, kind in TABLES])
def test_no_parameter_is_both_supported_and_refused(path, table, kind):
    assert set(table).isdisjoint(kind.__struct_fields__)


CHAT_VALUES = [
    ("tools", [{"type": "function", "function": {"name": "f"}}], "tools"),
    ("tool_choice", "auto", "tool_choice"),
    ("tool_choice", {"type": "function"}, "tool_choice"),
    ("response_format", {"type": "json_object"}, "response_format"),
    ("response_format", {"type": "json_schema"}, "response_format"),
    ("modalities", ["text", "audio"], "modalities"),
    ("store", True, "store"),
    ("store", 0, "store"),
    ("verbosity", "high", "verbosity"),
    ("reasoning_effort", "medium", "reasoning_effort"),
    ("function_call", "auto", "function_call"),
    ("functions", [{"name": "f"}], "functions"),
    ("best_of", 2, "best_of"),
    ("echo", True, "echo"),
    ("n", 129, "n"),
    ("length_penalty", 1.2, "length_penalty"),
    ("use_beam_search", True, "use_beam_search"),
    ("include_reasoning", False, "include_reasoning"),
]


@pytest.mark.parametrize(("name", "value", "param"), CHAT_VALUES, ids=[f"{n}={v}" for n, v, _ in CHAT_VALUES])
def test_values_that_chat_does_not_support(server, name, value, param):
    assert_refused(server.chat(**{name: value}), param)


@pytest.mark.parametrize(("name", "value"), [("best_of", 2), ("suffix", "end"), ("n", 1000)])
def test_values_that_completions_do_not_support(server, name, value):
    assert_refused(server.complete(**{name: value}), name)


def test_echo_with_logprobs_is_not_supported(server):
    assert_refused(server.complete(echo=True, logprobs=1), "echo")


def test_too_many_answers_over_all_prompts(server):
    assert_refused(server.complete(prompt=["a"] * 65, n=2), "prompt")


def test_obfuscation_is_not_supported(server):
    response = server.chat(stream=True, stream_options={"include_obfuscation": True})
    assert_refused(response, "stream_options.include_obfuscation")


def test_unknown_parameter_is_named_with_its_neighbours(server):
    response = server.chat(temprature=0.5)
    assert_refused(response, "temprature")
    assert "temperature" in response.json["error"]["message"]


def test_unknown_parameter_without_neighbours(server):
    response = server.chat(zzzzqqq=None)
    assert_refused(response, "zzzzqqq")
    assert "did you mean" not in response.json["error"]["message"]


def test_unknown_parameter_within_an_object(server):
    assert_refused(server.chat(stream=True, stream_options={"usage": True}), "stream_options.usage")


def test_unknown_parameter_of_a_message(server):
    assert_refused(server.chat(messages=[{"role": "user", "content": "2", "weight": 1}]), "messages[0].weight")


WRONG = [
    ("temperature", "hot"),
    ("temperature", 2.1),
    ("temperature", -0.1),
    ("temperature", True),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -1),
    ("top_k", 1.5),
    ("min_p", 2),
    ("n", 0),
    ("n", "2"),
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_completion_tokens", 0),
    ("min_tokens", -1),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("repetition_penalty", 0),
    ("seed", 2**63),
    ("seed", 10**40),
    ("seed", "7"),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", 5),
    ("stop", [5]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [100_000]),
    ("stop_token_ids", 5),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"100000": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", [1]),
    ("logprobs", 5),
    ("stream", "yes"),
    ("reasoning_format", "loud"),
    ("service_tier", "flex"),
    ("messages", []),
    ("messages", "Hello"),
    ("messages", ["Hello"]),
    ("chat_template_kwargs", []),
    ("model", 5),
    ("user", 5),
    ("stream_options", True),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={str(value)[:20]}" for name, value in WRONG])
def test_wrong_values_are_named(server, name, value):
    response = server.chat(**{name: value})
    assert response.status_code == 400, response.data
    error = response.json["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_request"
    assert error["param"].split("[")[0] == name
    assert name in error["message"]
    assert server.engine.actor.submitted == []


def test_top_logprobs_need_logprobs(server):
    assert server.chat(top_logprobs=2).json["error"]["param"] == "top_logprobs"


def test_more_top_logprobs_than_there_are(server):
    error = server.chat(logprobs=True, top_logprobs=21).json["error"]
    assert error["param"] == "top_logprobs"
    assert "top_logprobs is 21" in error["message"]


def test_minimum_above_the_maximum(server):
    assert server.chat(min_tokens=5, max_tokens=4).json["error"]["param"] == "min_tokens"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].type"),
    ],
)
def test_wrong_messages_are_named(server, message, param):
    response = server.chat(messages=[message])
    assert response.status_code == 400
    assert response.json["error"]["param"] == param


def test_continuing_and_opening_a_turn_exclude_each_other(server):
    error = server.chat(continue_final_message=True, add_generation_prompt=True)
    assert error.json["error"]["param"] == "continue_final_message"


def test_missing_field_is_named(server):
    error = server.post("/v1/chat/completions", {}).json["error"]
    assert error["param"] == "messages"
    assert error["message"] == "messages is required"


BODIES = [
    (b"", "empty"),
    (b"   ", "empty"),
    (b"{", "JSON"),
    (b"[]", "array"),
    (b"null", "null"),
    (b'"text"', "string"),
    (b"5", "number"),
    (b"\xff\xfe", "JSON"),
    (b'{"messages": NaN}', "JSON"),
    (b"[" * 100_000, "nested"),
]


@pytest.mark.parametrize(("body", "says"), BODIES, ids=[repr(body[:10]) for body, _ in BODIES])
def test_bodies_that_are_no_object(server, body, says):
    response = server.client.post("/v1/chat/completions", data=body, content_type="application/json", buffered=True)
    assert response.status_code == 400
    assert says in response.json["error"]["message"]


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_content_type_must_be_json(server, content_type):
    data = msgspec.json.encode(CHAT_BODY)
    response = server.client.post("/v1/chat/completions", data=data, content_type=content_type, buffered=True)
    assert response.status_code == 415
    assert response.json["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_ways_to_say_json(server, content_type):
    data = msgspec.json.encode(CHAT_BODY)
    response = server.client.post("/v1/chat/completions", data=data, content_type=content_type, buffered=True)
    assert response.status_code == 200


def test_body_that_is_too_long(make_server):
    response = make_server(max_body_bytes=100).chat(user="x" * 100)
    assert response.status_code == 413
    assert response.json["error"]["code"] == "request_too_large"


def test_half_of_a_surrogate_pair_is_the_clients_error(server):
    body = b'{"messages": [{"role": "user", "content": "\\ud83d"}]}'
    response = server.client.post("/v1/chat/completions", data=body, content_type="application/json", buffered=True)
    assert response.status_code == 400


def test_prompt_and_answer_over_the_context(server):
    limit = server.engine.info.model.max_context_tokens
    ok = server.complete(prompt=[65] * 10, max_tokens=limit - 10)
    over = server.complete(prompt=[65] * 10, max_tokens=limit - 9)
    assert ok.status_code == 200
    assert over.status_code == 400
    error = over.json["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert f"{limit} tokens" in error["message"]
    assert "10 tokens" in error["message"]


def test_prompt_that_leaves_no_room(server):
    limit = server.engine.info.model.max_context_tokens
    assert server.complete(prompt=[65] * (limit - 1)).status_code == 200
    response = server.complete(prompt=[65] * limit)
    assert response.json["error"]["code"] == "context_length_exceeded"
    response = server.chat(messages=[{"role": "user", "content": "x" * limit}])
    assert response.json["error"]["param"] == "messages"


def test_minimum_beyond_the_context(server):
    assert server.complete(min_tokens=1000).json["error"]["code"] == "context_length_exceeded"
