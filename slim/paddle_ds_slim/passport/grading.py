"""Whether an answer is right, and whether it went in circles. No model here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

#: in GSM8K's layout the answer stands behind it, after the worked solution
ANSWER_MARK = "####"

#: an answer loops where a run of so many tokens stands in it so many times without overlap
LOOP_TOKENS = 16
LOOP_TIMES = 4

#: a minus behind a digit or a bracket is that of a subtraction
_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z.)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MINUS = str.maketrans({"−": "-", "－": "-", "–": "-"})


def expected_answer(answer: str) -> str:
    """What a task's ``answer`` field asks for: the text behind the last ``####``, or all of it."""
    return answer.rpartition(ANSWER_MARK)[2].strip()


def is_right(written: str, expected: str) -> bool:
    """Whether the text after the reasoning gives the expected answer.

    Numbers are compared by value, taken from the last ``\\boxed{}`` or else from the last number in the text. Other answers
    must be the whole text, or what the last ``\\boxed{}`` holds; letter case, blanks and a full stop do not count.
    """
    boxed = _BOXED.findall(written)
    given = boxed[-1] if boxed else written
    wanted = _number(expected)
    if wanted is None:
        return _plain(given) == _plain(expected) != ""
    numbers = _NUMBER.findall(given.translate(_MINUS))
    return bool(numbers) and _value(numbers[-1]) == wanted


def loops(token_ids: Sequence[int]) -> bool:
    """Whether some run of :data:`LOOP_TOKENS` tokens stands in an answer :data:`LOOP_TIMES` times or more without overlap."""
    ends: dict[tuple[int, ...], int] = {}
    counts: dict[tuple[int, ...], int] = {}
    for start in range(len(token_ids) - LOOP_TOKENS + 1):
        run = tuple(token_ids[start : start + LOOP_TOKENS])
        if start < ends.get(run, 0):
            continue
        ends[run] = start + LOOP_TOKENS
        counts[run] = counts.get(run, 0) + 1
        if counts[run] >= LOOP_TIMES:
            return True
    return False


def _number(text: str) -> Decimal | None:
    """The value of a text that is a number and nothing else; ``$`` before and ``%`` or a full stop behind do not count."""
    found = _NUMBER.fullmatch(text.translate(_MINUS).strip().removeprefix("$").rstrip("%.").strip())
    return _value(found[0]) if found else None


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".。")
