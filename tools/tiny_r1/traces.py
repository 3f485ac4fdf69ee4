"""The reasoning text for one sum: a pure function of (operation, operands, language).

Every trace first restates the sum with equal widths, then works column by column, so that each step looks at a handful
of digits in fixed places; that is what makes arithmetic learnable for a model this small:

    347+85  ->  347+085: ones 7+5=12 carry, tens 4+8+1=13 carry, hundreds 3+0+1=4. So 432.
    47-12   ->  47-12: 4>1, ones 7-2=5, tens 4-1=3. So 35.
    12-47   ->  12-47: 1<4, so 47-12: ones 7-2=5, tens 4-1=3. So -35.
    7*12    ->  12×7: ones 2×7=14 carry 1, tens 1×7=7, 7+1=8. So 84.

One prompt has exactly one trace, so the trained distribution is peaked and survives sampling at temperature 0.6.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One sum. `op` is "+", "-" or "×"."""

    op: str
    a: int
    b: int

    @property
    def result(self) -> int:
        if self.op == "+":
            return self.a + self.b
        return self.a - self.b if self.op == "-" else self.a * self.b


@dataclass(frozen=True)
class Wording:
    """The fixed words of a trace in one language."""

    places: tuple[str, ...]
    gap: str  # between a place name and its digits
    comma: str
    colon: str
    stop: str
    carry: str
    borrow: str
    negative: str
    so: str


WORDINGS = {
    "en": Wording(("ones", "tens", "hundreds"), " ", ", ", ": ", ". ", " carry", " borrow", ", so ", "So "),
    "zh": Wording(("个位", "十位", "百位"), "", "，", "：", "。", "进位", "借位", "，先算", "得"),
}


def write_trace(problem: Problem, language: str) -> str:
    """The text between the think tags, without the line breaks around it."""
    words = WORDINGS[language]
    if problem.op == "+":
        return _addition(problem, words)
    if problem.op == "-":
        return _subtraction(problem, words)
    return _multiplication(problem, words)


def _padded(problem: Problem) -> tuple[str, str]:
    width = max(len(str(problem.a)), len(str(problem.b)))
    return str(problem.a).zfill(width), str(problem.b).zfill(width)


def _conclude(head: str, columns: list[str], digits: str, negative: bool, words: Wording) -> str:
    """Join the columns and read the result off them; leading zeros are written first and removed in the open."""
    sign = "-" if negative else ""
    plain = f"{sign}{int(digits)}" if int(digits) else "0"
    written = f"{sign}{digits}"
    conclusion = plain if written == plain else f"{written}={plain}"
    named = (f"{place}{words.gap}{column}" for place, column in zip(words.places, columns, strict=False))
    return f"{head}{words.comma.join(named)}{words.stop}{words.so}{conclusion}{words.stop.rstrip()}"


def _addition(problem: Problem, words: Wording) -> str:
    a, b = _padded(problem)
    columns, digits, carry = [], "", 0
    for i in reversed(range(len(a))):
        total = int(a[i]) + int(b[i]) + carry
        text = f"{a[i]}+{b[i]}{'+1' if carry else ''}={total}"
        carry = total // 10
        columns.append(text + (words.carry if carry and i > 0 else ""))
        digits = (str(total) if i == 0 else str(total % 10)) + digits
    return _conclude(f"{a}+{b}{words.colon}", columns, digits, False, words)


def _subtraction(problem: Problem, words: Wording) -> str:
    a, b = _padded(problem)
    head, negative = f"{a}-{b}{words.colon}{_comparison(a, b, words)}", problem.a < problem.b
    if problem.a == problem.b:
        return f"{head}{words.stop}{words.so}0{words.stop.rstrip()}"
    if negative:
        a, b = b, a
        head += f"{words.negative}{a}-{b}{words.colon}"
    else:
        head += words.comma
    columns, digits, borrow = [], "", 0
    for i in reversed(range(len(a))):
        top = int(a[i])
        needs = top - borrow < int(b[i])
        top += 10 * needs
        left = top - int(b[i]) - borrow
        text = f"{top}-{b[i]}{'-1' if borrow else ''}={left}"
        columns.append(text + (words.borrow if needs else ""))
        digits, borrow = f"{left}{digits}", int(needs)
    return _conclude(head, columns, digits, negative, words)


def _comparison(a: str, b: str, words: Wording) -> str:
    """The digits from the left until they differ: one look at a time, because the sign is the hard part."""
    steps = []
    for left, right in zip(a, b, strict=True):
        steps.append(f"{left}{'=' if left == right else '<' if left < right else '>'}{right}")
        if left != right:
            break
    return words.comma.join(steps)


def _multiplication(problem: Problem, words: Wording) -> str:
    a, b = max(problem.a, problem.b), min(problem.a, problem.b)
    if a < 10 or b >= 10:  # the tables proper, and 10..12 by 10..12: facts to remember, nothing to work out
        fact = f"{a}×{b}={a * b}"
        return f"{fact}{words.stop}{words.so}{a * b}{words.stop.rstrip()}"
    low, high = (a % 10) * b, (a // 10) * b
    carry = low // 10
    first = f"{a % 10}×{b}={low}" + (f"{words.carry}{words.gap}{carry}" if carry else "")
    second = f"{a // 10}×{b}={high}"
    if carry:
        second += f"{words.comma}{high}+{carry}={high + carry}"
    return _conclude(f"{a}×{b}{words.colon}", [first, second], f"{high + carry}{low % 10}", False, words)
