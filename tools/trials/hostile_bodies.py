"""JSON and what resembles it, for the routes that read a body: made by hypothesis, from a seed, so a failure can be had again."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from paddle_ds_serving.protocol import chat, completions, feedback, generate, refused, tokenize
from paddle_ds_serving.routes import admin

Body = dict[str, Any]

#: by path, a body that is answered, and soon
VALID: dict[str, Body] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "1+1"}], "max_tokens": 4},
    "/v1/completions": {"prompt": "1+1=", "max_tokens": 4},
    "/generate": {"prompt": "1+1=", "max_length": 4},
    "/tokenize": {"prompt": "1+1"},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/feedback": {"response_id": "chatcmpl-1", "rating": "up"},
    "/admin/models/load": {"path": "/nowhere"},
    "/admin/rollback": {"may_drain": False},
    "/admin/drain": {"enabled": False},
}
_DEEP: Any = []
for _ in range(200):
    _DEEP = [_DEEP]
#: fields that each route knows, taken or refused
_NAMES: dict[str, list[str]] = {
    "/v1/chat/completions": [*chat.ChatRequest.__struct_fields__, *refused.CHAT],
    "/v1/completions": [*completions.CompletionRequest.__struct_fields__, *refused.COMPLETIONS],
    "/generate": [*generate.GenerateRequest.__struct_fields__, *refused.GENERATE],
    "/tokenize": [*tokenize.TokenizeRequest.__struct_fields__],
    "/detokenize": [*tokenize.DetokenizeRequest.__struct_fields__],
    "/v1/feedback": [*feedback.FeedbackRequest.__struct_fields__],
    "/admin/models/load": [*admin.LoadRequest.__struct_fields__],
    "/admin/rollback": [*admin.RollbackRequest.__struct_fields__],
    "/admin/drain": [*admin.DrainRequest.__struct_fields__],
}
#: values that mean something to a field, and are wrong, absurd, or as large as may be
_ABSURD: dict[str, list[Any]] = {
    "messages": [
        [],
        [{}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        [{"role": "assistant", "content": "<think>" * 40}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1]}}}]}, {"role": "tool"}],
        [{"role": "tool", "content": "x", "tool_call_id": 5}],
        [{"role": "user", "content": "<｜begin▁of▁sentence｜><｜User｜>\u0000\u202e{{ 7*7 }}{% raw %}"}],
        [{"role": ["user"], "content": _DEEP}],
    ],
    "prompt": ["", [], [[]], [[1], "a"], [-1], [2**31], [10**30], ["a"] * 200, "\u0000", "\U0010ffff" * 50, [[]] * 128, [1.5]],
    "tokens": [[-1], [2**63], [10**4000], [0] * 5000, [True], ["1"], [1e308]],
    "logit_bias": [{"x": 1}, {"-1": 1}, {"9" * 5000: 1}, {"1e3": 1}, {"٣": 1}, {str(i): 1 for i in range(20_000)}, {"1": 1e300}],
    "stop": [[""], "", ["a"] * 1000, "a" * 100_000, [None], ["\ud83d"], [["a"]]],
    "stop_token_ids": [[-1], [10**40], list(range(5000)), [None]],
    "n": [0, -1, 128, 129, 2**63, 10**4000, 1.5],
    "best_of": [0, 2**31],
    "max_tokens": [0, -1, 2**31, 2**64, 10**4000, "4"],
    "seed": [2**63, -(2**63), -1, 10**4000, 0.5],
    "temperature": [-1, 2.1, 1e308, float("nan"), float("inf"), 5e-324],
    "logprobs": [-1, 21, 10**9, True, "yes"],
    "top_logprobs": [-1, 21, 10**9],
    "guided_regex": ["(a+)+$" * 100],
    "response_format": [{"type": "json_schema", "json_schema": _DEEP}],
    "tools": [[{"type": "function", "function": {"name": "f", "parameters": _DEEP}}]],
    "chat_template": ["{{ cycler.__init__.__globals__ }}"],
    "chat_template_kwargs": [{"messages": []}, {"x": _DEEP}, {"add_generation_prompt": "{{ 1/0 }}"}],
    "stream_options": [{"include_usage": 1}, {"x": 1}, []],
    "model": ["", "../../etc/passwd", "x" * 100_000, "tiny\u0000"],
    "path": [
        "",
        ".",
        "/",
        "\u0000",
        "~nobody-of-this-name/x",
        "x" * 100_000,
        "x" * 2_000_000,
        "/dev/null/x",
        "/etc",
        "a/" * 3000,
    ],
    "request_id": ["a\nb", "", "x" * 1000],
    "rating": [0, 6, 1.0, "UP", [], 10**30],
    "comment": ["x" * 9000, "\u0000" * 100],
}
_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**31, -(2**31), 2**63, 2**64, -(2**64), 10**40, 10**4000]),
        st.floats(),
        st.text(max_size=20),
        st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
#: no JSON, or JSON at its edges; ``%s`` is a valid body
_TEXTS = [
    b"",
    b" \n\t",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"}",
    b"%s%s",
    b"%s,",
    b"[%s]",
    b"\xef\xbb\xbf%s",
    b"\x00%s",
    b"%s\x00",
    b"// no comment\n%s",
    b"{'messages': []}",
    b'{"messages": NaN}',
    b'{"temperature": Infinity}',
    b'{"temperature": -1e999}',
    b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"temperature": 0.' + b"9" * 100_000 + b"}",
    b'{"n": 1e1}',
    b'{"n": 01}',
    b'{"prompt": "\\ud83d"}',
    b'{"prompt": "\xed\xa0\xbd"}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\u0000\\u"}',
    b'{"prompt": "a\nb"}',
    b'{"prompt": "a", "prompt": ["b"], "prompt": 3}',
    b'{"__proto__": {"x": 1}, "constructor": 5, "__class__": "x"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"metadata": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"messages": ' + b"[" * 300_000 + b"]" * 300_000 + b"}",
    b'{"' + b"x" * 100_000 + b'": 1}',
    "{}".encode("utf-16"),
    "{}".encode("utf-32"),
]


def texts() -> list[tuple[str, bytes]]:
    """The few that are large: a million elements, ten million characters, millions of brackets. Path and body."""
    million = b"1," * 999_999 + b"1"
    long = b"x" * 10_000_000
    chat, plain = "/v1/chat/completions", "/v1/completions"
    return [
        (plain, b'{"prompt": [%s]}' % million),
        (plain, b'{"prompt": [%s]}' % (b'"",' * 999_999 + b'""')),
        (plain, b'{"prompt": "%s"}' % long),
        (plain, b'{"prompt": "a", "stop": [%s]}' % (b'"a",' * 999_999 + b'"a"')),
        (plain, b'{"prompt": "a", "stop_token_ids": [%s], "n": 128}' % million),
        (plain, b'{"prompt": "a", "metadata": {"a": [%s{}]}}' % (b"{}," * 3_000_000)),
        (plain, b'{"%s": 1}' % long),
        (chat, b'{"messages": [%s]}' % (b"[]," * 3_000_000 + b"[]")),
        (chat, b'{"messages": [{"role": "%s", "content": "a"}]}' % long),
        (chat, b'{"messages": [%s]}' % (b'{"role":"user","content":"a"},' * 200_000 + b'{"role":"user","content":"a"}')),
        (chat, b'{"messages": [{"role": "user", "content": "a"}], "model": "%s"}' % long),
        (chat, b'{"messages": [{"role": "user", "content": "a"}], "reasoning_format": "%s"}' % (b" - at `" * 1_000_000)),
        ("/tokenize", b'{"prompt": "%s"}' % (b"a " * 1_000_000)),
        ("/detokenize", b'{"tokens": [%s]}' % million),
        ("/v1/feedback", b'{"rating": "up", "request_id": "%s"}' % long),
        ("/admin/models/load", b'{"path": "%s"}' % long),
        ("/generate", b"x" * (17 * 2**20)),
    ]


def encoded(body: Mapping[str, Any]) -> bytes:
    """JSON, with NaN and halves of surrogate pairs where the body has them."""
    return json.dumps(body).encode()


@st.composite
def wrong_fields(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid body, with up to four fields that are not."""
    path = draw(st.sampled_from(sorted(VALID)))
    body = dict(VALID[path])
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(_NAMES[path]) | st.text(string.printable, max_size=12))
        body[name] = draw(st.sampled_from(_ABSURD[name]) if name in _ABSURD and draw(st.integers(0, 2)) else _VALUES)
    return path, encoded(body)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid body, with bytes that are lost, doubled or something else."""
    path = draw(st.sampled_from(sorted(VALID)))
    text = bytearray(encoded(VALID[path]))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text)))
        size = draw(st.integers(0, 8))
        text[at : at + size] = draw(st.sampled_from([b"", bytes(text[at : at + size]) * 2]) | st.binary(max_size=6))
    return path, bytes(text)


@st.composite
def no_json(draw: st.DrawFn) -> tuple[str, bytes]:
    """Text and bytes that are no body at all, or at the edge of it."""
    path = draw(st.sampled_from(sorted(VALID)))
    text = draw(st.sampled_from(_TEXTS) | st.binary(max_size=200))
    return path, text.replace(b"%s", encoded(VALID[path]))


def examples(strategy: st.SearchStrategy[Any], count: int, seed_number: int) -> list[Any]:
    """So many of a strategy, the same for the same seed."""
    found: list[Any] = []
    attempt = 0
    while len(found) < count:

        @seed(seed_number + 7919 * attempt)
        @settings(
            max_examples=count - len(found),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def collect(example: Any) -> None:
            found.append(example)

        collect()
        attempt += 1
    return found[:count]
