"""OpenAI-style messages."""

from __future__ import annotations

import pytest

from paddle_ds.errors import InvalidRequest, UnsupportedParameter
from paddle_ds.text import normalise_messages

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert normalise_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "ab"}]


def test_developer_is_system():
    assert normalise_messages([{"role": "developer", "content": "x"}]) == [{"role": "system", "content": "x"}]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "refusal"])
def test_what_the_assistant_thought_is_left_out(field):
    sent = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", field: "thought"}]
    assert normalise_messages(sent)[1] == {"role": "assistant", "content": "a"}
    assert field in sent[1], "the request itself is not changed"


def test_an_assistant_that_called_tools_needs_no_content():
    (message,) = normalise_messages([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    assert message == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert normalise_messages([{"role": "assistant"}]) == [{"role": "assistant", "content": ""}]


def test_tool_results_keep_their_call_id():
    message = {"role": "tool", "content": "42", "tool_call_id": "1"}
    assert normalise_messages([message]) == [message]


OK = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (None, "messages"),
        ([OK, "hi"], "messages[1]"),
        ([OK, {"content": "x"}], "messages[1].role"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([OK, OK, {"role": "user"}], "messages[2].content"),
        ([{"role": "system", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "x", "name": 5}], "messages[0].name"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": 5}], "messages[0].tool_calls"),
    ],
)
def test_a_wrong_field_is_named(messages, param):
    with pytest.raises(InvalidRequest) as caught:
        normalise_messages(messages)
    assert caught.value.param == param
    assert param in str(caught.value)


def test_the_other_part_type_is_named():
    with pytest.raises(InvalidRequest, match="image_url"):
        normalise_messages([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


def test_an_unknown_field_is_refused_unless_null():
    assert normalise_messages([{**OK, "weight": None}]) == [OK]
    with pytest.raises(UnsupportedParameter) as caught:
        normalise_messages([{**OK, "weight": 1}])
    assert caught.value.param == "messages[0].weight"
