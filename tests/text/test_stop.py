"""Stop strings across chunk borders."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_ds.text import StopChecker, StopResult

LETTERS = st.text("ab<", max_size=20)
STOPS = st.lists(st.text("ab<", min_size=1, max_size=5), min_size=1, max_size=4)


def run(checker, parts):
    """Everything that comes out, and the match."""
    out, matched = "", None
    for count, part in enumerate(parts, 1):
        result = checker.push(part, count)
        out += result.text
        if result.stopped:
            assert matched is None
            matched = result.matched
    return out + checker.flush(), matched


def reference(text, stops, include):
    """The rule, said plainly: the first end wins, then the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            matched = max(ending, key=len)
            return text[: end if include else end - len(matched)], matched
    return text, None


@given(text=LETTERS, stops=STOPS, include=st.booleans(), cuts=st.lists(st.integers(0, 20)))
def test_any_split_gives_what_the_rule_says(text, stops, include, cuts):
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [text[start:end] for start, end in itertools.pairwise(borders)]
    expected = reference(text, stops, include)
    assert run(StopChecker(stops, include), parts) == expected
    assert run(StopChecker(stops, include), [text]) == expected
    assert run(StopChecker(stops, include), list(text)) == expected


def test_only_a_possible_beginning_is_held_back():
    checker = StopChecker(["<END>"])
    assert checker.push("done <EN", 1) == StopResult("done ")
    assert checker.push("V", 2) == StopResult("<ENV")
    assert checker.push(" x<E", 3) == StopResult(" x")
    assert checker.push("ND> more", 4) == StopResult("", True, "<END>")
    assert checker.push("after", 5) == StopResult("")
    assert checker.flush() == ""


def test_the_match_that_ends_first_wins_then_the_longest():
    assert run(StopChecker(["abcd", "bc"]), ["abcd"]) == ("a", "bc")
    assert run(StopChecker(["c", "abc"]), ["xabc"]) == ("x", "abc")


def test_the_matched_string_can_be_kept():
    assert run(StopChecker(["\n\n"], include_stop_str=True), ["a\n", "\nb"]) == ("a\n\n", "\n\n")


def test_stop_strings_before_min_tokens_are_text():
    checker = StopChecker(["."], min_tokens=3)
    assert checker.push("a.", 1) == StopResult("a.")
    assert checker.push("b", 2) == StopResult("b")
    assert checker.push("c.", 3) == StopResult("c", True, ".")


def test_a_stop_string_begun_early_counts_when_it_ends_late():
    checker = StopChecker(["aab"], min_tokens=2)
    assert checker.push("xaa", 1) == StopResult("x")
    assert checker.push("b", 2) == StopResult("", True, "aab")


def test_an_early_match_may_begin_a_later_one():
    checker = StopChecker(["aa"], min_tokens=2)
    assert checker.push("aa", 1) == StopResult("a")
    assert checker.push("a", 2) == StopResult("", True, "aa")


@pytest.mark.parametrize("text", ["", "plain"])
def test_no_stop_strings_hold_nothing_back(text):
    checker = StopChecker([])
    assert checker.push(text, 1) == StopResult(text)
    assert checker.flush() == ""
