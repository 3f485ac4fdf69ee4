"""One answer from token ids to its texts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.text import ReasoningSplitter, TextDelta, TextStream

ANSWER = "I think 你好 😀.\n</think>\n\nHello world, café! <b> STOP after"


def run(stream, ids, cuts=()):
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    deltas = [stream.push(ids[start:end]) for start, end in itertools.pairwise(borders)]
    deltas.append(stream.finish())
    assert "".join(delta.reasoning for delta in deltas) == stream.reasoning_text
    assert "".join(delta.content for delta in deltas) == stream.content_text
    matches = [delta.matched_stop for delta in deltas if delta.stopped]
    return stream.reasoning_text, stream.content_text, matches, stream.num_tokens, stream.num_reasoning_tokens


@given(cuts=st.lists(st.integers(0, 80)))
def test_any_split_gives_the_same_texts_and_counts(byte_level, cuts):
    ids = byte_level.encode(ANSWER, add_special_tokens=False)
    params = SamplingParams(stop=("STOP", "afterwards"))
    result = run(TextStream(byte_level, params, reasoning=ReasoningSplitter(True)), ids, cuts)
    num_thought = len(byte_level.encode("I think 你好 😀.\n</think>", add_special_tokens=False))
    num_all = len(byte_level.encode(ANSWER.removesuffix(" after"), add_special_tokens=False))
    assert result == ("I think 你好 😀.", "Hello world, café! <b> ", ["STOP"], num_all, num_thought)


def test_nothing_comes_after_a_stop(byte_level):
    stream = TextStream(byte_level, SamplingParams(stop=("wor",)))
    delta = stream.push(byte_level.encode("Hello world, how", add_special_tokens=False))
    assert delta == TextDelta("", "Hello ", True, "wor")
    assert stream.push(byte_level.encode("more")) == TextDelta()
    assert stream.finish() == TextDelta()
    assert stream.content_text == "Hello "


def test_stop_strings_end_the_reasoning_too(byte_level):
    params = SamplingParams(stop=("STOP",))
    stream = TextStream(byte_level, params, reasoning=ReasoningSplitter(True))
    stream.push(byte_level.encode("thought \nSTOP more", add_special_tokens=False))
    assert (stream.reasoning_text, stream.content_text) == ("thought \n", "")


def test_a_held_back_beginning_comes_at_the_end(byte_level):
    stream = TextStream(byte_level, SamplingParams(stop=("</answer>",)))
    assert stream.push(byte_level.encode("a </ans", add_special_tokens=False)).content == "a "
    assert stream.finish() == TextDelta("", "</ans")


def test_the_stop_string_is_kept_on_request_and_min_tokens_waits(byte_level):
    params = SamplingParams(stop=("a",), include_stop_str_in_output=True, min_tokens=3)
    stream = TextStream(byte_level, params)
    for char in "abcab":
        stream.push(byte_level.encode(char, add_special_tokens=False))
    assert (stream.content_text, stream.num_tokens) == ("abca", 4)


@pytest.mark.parametrize("skip", [True, False])
def test_think_tags_marked_special_are_seen(byte_level_special_think, skip):
    tokenizer = byte_level_special_think
    think = tokenizer.token_id("<think>")
    assert think in tokenizer.special_ids
    ids = [think, *tokenizer.encode("I add</think>2", add_special_tokens=False)]
    stream = TextStream(tokenizer, SamplingParams(skip_special_tokens=skip), reasoning=ReasoningSplitter(False))
    assert run(stream, ids)[:2] == ("I add", "2")


def test_without_a_splitter_special_tags_are_skipped_as_asked(byte_level_special_think):
    ids = byte_level_special_think.encode("I add</think>2", add_special_tokens=False)
    assert run(TextStream(byte_level_special_think, SamplingParams()), ids)[:2] == ("", "I add2")


def test_reasoning_tokens_are_counted_when_everything_is_content(byte_level):
    ids = byte_level.encode("ab</think>c", add_special_tokens=False)
    stream = TextStream(byte_level, SamplingParams(), reasoning=ReasoningSplitter(True, "none"))
    assert run(stream, ids) == ("", "ab</think>c", [], len(ids), len(ids) - 1)


def test_an_unpushed_stop_token_is_counted(byte_level):
    stream = TextStream(byte_level, SamplingParams())
    stream.push(byte_level.encode("Hello", add_special_tokens=False))
    before = stream.num_tokens
    stream.finish(byte_level.eos_ids[0])
    assert (stream.num_tokens, stream.content_text) == (before + 1, "Hello")


def test_missing_bytes_at_the_end_are_one_replacement_character(sentencepiece):
    ids = sentencepiece.encode("你", add_special_tokens=False)[:-1]
    stream = TextStream(sentencepiece, SamplingParams())
    assert stream.push(ids) == TextDelta()
    assert stream.finish() == TextDelta("", "\ufffd")


def test_an_answer_continues_its_prompt(sentencepiece):
    hello = sentencepiece.encode("hello", add_special_tokens=False)
    assert TextStream(sentencepiece, SamplingParams(), prompt_ids=hello).push(hello).content == " hello"
    assert TextStream(sentencepiece, SamplingParams()).push(hello).content == "hello"
