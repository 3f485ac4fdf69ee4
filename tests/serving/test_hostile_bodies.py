"""Whatever a body says, the answer is a record or a typed refusal."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_engine import ANSWERS, FakeEngine
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_ds import settings as settings_table
from paddle_ds.errors import InvalidRequest, PaddleDSError, PromptTooLong, RequestError
from paddle_ds.text import Tokenizer
from paddle_ds_serving import prompts, sampling
from paddle_ds_serving.app import create_app
from paddle_ds_serving.http_errors import MAX_MESSAGE_CHARACTERS, error_json
from paddle_ds_serving.protocol import body as bodies
from paddle_ds_serving.protocol import chat, completions, feedback, generate, refused, tokenize
from paddle_ds_serving.routes import admin
from paddle_ds_serving.routes import bodies as route_bodies

KEY = "hostile-0123456789abcdef0123456789"
KEYS = {"message", "type", "param", "code"}
ROUTES: dict[str, tuple[type[msgspec.Struct], dict[str, bodies.Refused], dict[str, Any]]] = {
    "/v1/chat/completions": (
        chat.ChatRequest,
        refused.CHAT,
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    ),
    "/v1/completions": (completions.CompletionRequest, refused.COMPLETIONS, {"prompt": "Hello", "max_tokens": 2}),
    "/generate": (generate.GenerateRequest, refused.GENERATE, {"prompt": "Hello", "max_length": 2}),
    "/tokenize": (tokenize.TokenizeRequest, {}, {"prompt": "Hello"}),
    "/detokenize": (tokenize.DetokenizeRequest, {}, {"tokens": [1, 2]}),
    "/v1/feedback": (feedback.FeedbackRequest, {}, {"response_id": "chatcmpl-1", "rating": "up"}),
    "/admin/models/load": (admin.LoadRequest, {}, {"path": "/nowhere"}),
    "/admin/rollback": (admin.RollbackRequest, {}, {}),
    "/admin/drain": (admin.DrainRequest, {}, {}),
}
IDS = [path.strip("/").replace("/", "-") for path in ROUTES]
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**31, 2**63, -(2**64), 10**40, 10**4000]),
        st.floats(),  # NaN and infinity among them
        st.text(max_size=12),
        st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)
EDGES = st.sampled_from(
    [
        b"",
        b"null",
        b'{"n": 01}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "\\ud83d"}',
        b'{"prompt": "\xed\xa0\xbd"}',
        b'{"prompt": "a", "prompt": 3}',
        b'{"a":' * 20_000,
        b'{"metadata": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
    ]
)
each_route = pytest.mark.parametrize("path", ROUTES, ids=IDS)
few = settings(max_examples=60, derandomize=True, database=None, deadline=None)


@st.composite
def hostile(draw: st.DrawFn, path: str) -> bytes:
    """A valid body with wrong fields, or with wrong bytes; or none at all."""
    kind, _, valid = ROUTES[path]
    choice = draw(st.integers(0, 3))
    if choice == 0:
        return draw(st.binary(max_size=80) | EDGES)
    text = bytearray(json.dumps(valid).encode())
    if choice == 1:
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 6))] = draw(st.binary(max_size=6))
        return bytes(text)
    names = st.sampled_from([*kind.__struct_fields__, *ROUTES[path][1]]) | st.text(string.printable, max_size=8)
    wrong = draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))
    return json.dumps({**valid, **wrong}).encode()


@pytest.fixture(scope="module")
def client(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    engine = FakeEngine(tokenizer_dir, ANSWERS)
    directory = str(tmp_path_factory.mktemp("feedback"))
    environ = {"PADDLE_DS_API_KEY": KEY, "PADDLE_DS_FEEDBACK_DIR": directory}
    yield create_app(engine, settings_table.load(environ)).test_client()
    engine.close()


def post(client: FlaskClient, path: str, data: bytes | str) -> Any:
    headers = {"authorization": f"Bearer {KEY}"}
    return client.post(path, data=data, content_type="application/json", headers=headers, buffered=True)


def error_of(response: Any) -> dict[str, Any]:
    assert 400 <= response.status_code < 500, response.data
    error: dict[str, Any] = response.json["error"]
    assert error.keys() == KEYS
    assert len(response.data) < 4 * MAX_MESSAGE_CHARACTERS
    return error


@each_route
def test_a_body_is_read_or_refused_with_a_type(path: str) -> None:
    kind, table, _ = ROUTES[path]

    @few
    @given(hostile(path))
    def check(data: bytes) -> None:
        try:
            found: object = bodies.decode(data, kind, table)
        except RequestError as error:
            found = error
        assert isinstance(found, kind) or (isinstance(found, RequestError) and found.http_status == 400)

    check()


@each_route
def test_a_route_answers_whatever_it_is_sent(client: FlaskClient, path: str) -> None:
    @few
    @given(hostile(path))
    def check(data: bytes) -> None:
        response = post(client, path, data)
        if path.startswith("/admin") and response.status_code == 503:
            return  # a valid body, and no supervisor
        if response.status_code not in (200, 201):
            error_of(response)

    check()


CHAT = '{"messages": [{"role": "user", "content": "Hello"}], %s}'
LONG = "x" * 300_000
LARGE = [
    ("/v1/chat/completions", CHAT % f'"logit_bias": {{"{"9" * 5000}": 1}}', "logit_bias"),
    ("/v1/chat/completions", CHAT % f'"logit_bias": {json.dumps({str(i): 0 for i in range(20_000)})}', "logit_bias"),
    ("/v1/chat/completions", CHAT % f'"stop": {json.dumps(["a"] * 65)}', "stop"),
    ("/v1/chat/completions", CHAT % f'"stop": "{"a" * 1025}"', "stop"),
    ("/generate", f'{{"prompt": "a", "stop": "{"a" * 1025}"}}', "stop"),
    ("/v1/completions", f'{{"prompt": "a", "stop_token_ids": {[1] * 1025}}}', "stop_token_ids"),
    ("/v1/chat/completions", CHAT % f'"{LONG}": 1', "xxx"),
    ("/v1/chat/completions", CHAT % f'"reasoning_format": "{" - at `" * 50_000}"', "reasoning_format"),
    ("/v1/chat/completions", CHAT % f'"model": "{LONG}"', "model"),
    ("/v1/chat/completions", f'{{"messages": [{{"role": "{LONG}", "content": "x"}}]}}', "messages[0].role"),
    ("/v1/chat/completions", f'{{"messages": [{"[]," * bodies.MAX_BRACKETS}[]]}}', None),
    ("/v1/completions", f'{{"prompt": "{LONG}"}}', "prompt"),
    ("/generate", f'{{"prompt": "{LONG}"}}', "prompt"),
    ("/v1/chat/completions", f'{{"messages": [{{"role": "user", "content": "{LONG}"}}]}}', "messages"),
    ("/admin/models/load", f'{{"path": "{LONG}"}}', "path"),
]


@pytest.mark.parametrize(
    ("path", "data", "param"), LARGE, ids=[f"{number}-{param}" for number, (_, _, param) in enumerate(LARGE)]
)
def test_what_is_too_large_is_refused_in_a_few_words(client: FlaskClient, path: str, data: str, param: str | None) -> None:
    found = error_of(post(client, path, data))["param"]
    assert found == param or (param == "xxx" and found.startswith(param))


def test_what_is_large_and_allowed_is_answered(client: FlaskClient) -> None:
    fields = {
        "stop": ["q" * sampling.MAX_STOP_CHARACTERS] * sampling.MAX_STOPS,
        "stop_token_ids": [1] * sampling.MAX_STOP_TOKEN_IDS,
    }
    assert post(client, "/v1/completions", json.dumps({"prompt": "Hello", "max_tokens": 2, **fields})).status_code == 200
    text = '[{"role": "user", "content": "' + "{" * 200_000 + '"}]'
    assert error_of(post(client, "/v1/chat/completions", f'{{"messages": {text}}}'))["code"] == "context_length_exceeded"


def test_methods_that_clients_make_up_share_one_count(client: FlaskClient) -> None:
    for number in range(3):
        client.open("/v1/models", method=f"MADEUP{number}", headers={"authorization": f"Bearer {KEY}"}, buffered=True)
    text = client.get("/metrics", headers={"authorization": f"Bearer {KEY}"}, buffered=True).text
    assert 'method="other"' in text
    assert "MADEUP" not in text


@pytest.mark.parametrize(("length", "times"), [(100, 0), (route_bodies.LARGE_BYTES, 1)])
def test_memory_of_a_large_body_is_given_back(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, length: int, times: int
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(route_bodies, "malloc_trim", given_back.append)
    post(client, "/v1/completions", '{"prompt": "Hello", "user": "' + "x" * length + '"}')
    post(client, "/v1/completions", '{"nothing": "' + "x" * length + '"}')  # refused
    assert given_back == [0] * (2 * times)


class Counting:
    """A tokenizer that knows how much it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.num_characters = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.num_characters += len(text)
        return self._tokenizer.encode(text, add_special_tokens)


def test_a_text_that_is_far_too_long_is_not_tokenized_to_its_end(tokenizer_dir: Path) -> None:
    counting = Counting(Tokenizer.from_dir(tokenizer_dir))
    with pytest.raises(PromptTooLong) as refusal:
        prompts.text_prompt(counting, "x" * 1_000_000, limit_tokens=1000)  # type: ignore[arg-type]
    assert refusal.value.param == "prompt"
    assert counting.num_characters < 100_000


def test_a_text_of_few_tokens_is_taken_however_long_it_is(tokenizer_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(tokenizer_dir)
    text = "<think>" * 500
    limit_tokens = len(tokenizer.encode(text))
    assert len(text) > 2 * limit_tokens
    assert len(prompts.text_prompt(tokenizer, text, limit_tokens=limit_tokens).ids) == limit_tokens


@pytest.mark.parametrize("error", [InvalidRequest, PaddleDSError])
def test_no_message_is_longer_than_a_page(error: type[PaddleDSError]) -> None:
    told = json.loads(error_json(error("x" * 10_000, param="y" * 10_000).info()))["error"]
    assert len(told["message"]) == MAX_MESSAGE_CHARACTERS
    assert len(told["param"]) == 200
