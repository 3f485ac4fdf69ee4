"""Reasoning apart from the answer, however the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_ds.errors import UnsupportedError
from paddle_ds.text import ReasoningSplitter, SplitText, starts_inside_reasoning

FRAGMENTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", "think", ">", "\n", "\n\n", " ", "word", "```", "你"]),
    max_size=12,
).map("".join)


def split(parts, *, inside=True, mode="deepseek"):
    splitter = ReasoningSplitter(inside, mode)
    pieces = [*(splitter.push(part) for part in parts), splitter.flush()]
    return "".join(piece.reasoning for piece in pieces), "".join(piece.content for piece in pieces)


@pytest.mark.parametrize(
    ("inside", "text", "reasoning", "content"),
    [
        pytest.param(True, "I add.\n</think>\n\nIt is 2.", "I add.", "It is 2.", id="template-primed"),
        pytest.param(False, "<think>\nI add.\n</think>\n\nIt is 2.", "I add.", "It is 2.", id="model-writes-tag"),
        pytest.param(False, "\n<think>a</think>b", "a", "b", id="white-space-before-the-tag"),
        pytest.param(True, "<think>\na</think>b", "a", "b", id="model-repeats-the-primed-tag"),
        pytest.param(True, "\n\n</think>\n\nHi", "", "Hi", id="empty-thought"),
        pytest.param(True, "</think>Hi", "", "Hi", id="closed-at-once"),
        pytest.param(True, "I am still think", "I am still think", "", id="cut-off-by-length"),
        pytest.param(True, "cut in the tag </thi", "cut in the tag </thi", "", id="cut-off-in-the-tag"),
        pytest.param(True, "a</think>\n\n", "a", "", id="nothing-after-the-tag"),
        pytest.param(True, "", "", "", id="empty"),
        pytest.param(False, "Just text.\n", "", "Just text.\n", id="no-reasoning-at-all"),
        pytest.param(False, " <thin ice", "", " <thin ice", id="not-the-tag"),
        pytest.param(False, "see <think>x</think>", "", "see <think>x</think>", id="tag-in-content-without-reasoning"),
        pytest.param(True, "a</think>\n```xml\n</think>\n```", "a", "```xml\n</think>\n```", id="closing-tag-in-a-code-block"),
        pytest.param(True, "a</think>b <think>c</think>", "a", "b <think>c</think>", id="later-tags-are-content"),
        pytest.param(True, "a < b\n\nc </thinks> d</think>e", "a < b\n\nc </thinks> d", "e", id="almost-the-tag"),
        pytest.param(True, "a</think>\n    indented\n", "a", "    indented\n", id="indentation-stays"),
        pytest.param(True, "a <</think>b", "a <", "b", id="false-start-before-the-tag"),
    ],
)
def test_split(inside, text, reasoning, content):
    assert split([text], inside=inside) == (reasoning, content)
    assert split(list(text), inside=inside) == (reasoning, content)


@given(text=FRAGMENTS, cuts=st.lists(st.integers(0, 60)), inside=st.booleans())
@pytest.mark.parametrize("mode", ["deepseek", "none", "deepseek-legacy"])
def test_any_split_gives_the_same(mode, text, cuts, inside):
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [text[start:end] for start, end in itertools.pairwise(borders)]
    assert split(parts, inside=inside, mode=mode) == split([text], inside=inside, mode=mode)


@given(text=FRAGMENTS, inside=st.booleans())
def test_none_leaves_the_text_alone(text, inside):
    assert split(list(text), inside=inside, mode="none") == ("", text)


def test_legacy_gives_the_whole_text_with_tags_as_content():
    text = "a\n</think>\n\nb"
    assert split([text], mode="deepseek-legacy") == ("a", "<think>\n" + text)
    assert split(["<think>\n" + text], mode="deepseek-legacy") == ("a", "<think>\n" + text)
    assert split(["<think>" + text], inside=False, mode="deepseek-legacy") == ("a", "<think>" + text)
    assert split(["plain"], inside=False, mode="deepseek-legacy") == ("", "plain")


def test_white_space_before_a_possible_tag_is_held_back():
    splitter = ReasoningSplitter(True)
    assert splitter.push("\nthought \n\n") == SplitText("thought", "")
    assert splitter.push("</th") == SplitText("", "")
    assert splitter.push("e end\n") == SplitText(" \n\n</the end", "")
    assert splitter.push("</think>\n") == SplitText("", "")
    assert splitter.push("\n") == SplitText("", "")
    assert splitter.push("Hi\n\n") == SplitText("", "Hi\n\n")


def test_inside_follows_the_text():
    splitter = ReasoningSplitter(False)
    assert not splitter.inside
    splitter.push("<think>")
    assert splitter.inside
    splitter.push("x</think>")
    assert not splitter.inside


def test_another_mode_is_refused():
    with pytest.raises(UnsupportedError, match="deepseek-legacy"):
        ReasoningSplitter(True, "auto")


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("<｜User｜>hi<｜Assistant｜><think>\n", True),
        ("<｜User｜>hi<｜Assistant｜>", False),
        ("<｜User｜>hi<｜Assistant｜><think>\n\n</think>\n\n", False),
        ("<｜User｜>what is </think>?<｜Assistant｜><think>\n", True),
        ("<｜User｜>write <think><｜Assistant｜>", False),
        ("<｜Assistant｜><think>old</think>x<｜User｜>hi<｜Assistant｜><think>\n", True),
        ("<｜Assistant｜><think>\nold</think>x<｜User｜>hi<｜Assistant｜>", False),
        ("<｜Assistant｜>done<｜end▁of▁sentence｜><｜User｜>say <think>", False),
        ("<｜User｜>hi<｜Assistant｜><think>\nhalf a thou", True),
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        ("some other format: <think>\n", True),
        ("some other format <think> and on", False),
        ("", False),
    ],
)
def test_starts_inside_is_decided_by_the_last_turn(prompt, inside):
    assert starts_inside_reasoning(prompt) is inside
