"""What one rendering of a chat template may use, and the checks that hold it to that.

A rendering has a number of steps, a time, and a number of characters. One operation cannot be interrupted, so those
that could be huge by themselves are checked before they run (``'x' * n``, ``**``, ``str.replace``, widths in formats),
and values are checked before they are written out.

The aim is that a template which runs away ends quickly, with an error. It is no defence in depth against a template
made to exhaust memory by every trick there is; a service that renders templates of strangers limits its processes too.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import itertools
import re
import time
from collections.abc import Iterator
from typing import Any

from jinja2.exceptions import SecurityError

#: characters a prompt may have, and any text on the way to it
MAX_OUTPUT_CHARS = 8 * 1024 * 1024
_MAX_STEPS = 500_000
_MAX_SECONDS = 2.0
_MAX_LOOP_TEXT_CHARS = 64 * 1024 * 1024
MAX_ITEMS = 200_000
_MAX_INT_BITS = 4096
MAX_WIDTH = 10_000
_PADDING = ("center", "expandtabs", "ljust", "rjust", "zfill")

_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-#0 +]*(\d{5,}|\*|\d*\.(\d{5,}|\*))")
_WIDE_FORMAT = re.compile(r"\{[^}]*:[^}]*(\d{5,}|\{)")


@dataclasses.dataclass(slots=True)
class Budget:
    """What is left for one rendering."""

    deadline_s: float
    num_steps: int = _MAX_STEPS
    num_loop_text_chars: int = _MAX_LOOP_TEXT_CHARS

    def step(self, num_chars: int = 0) -> None:
        """Pay for one step that may write so many characters."""
        self.num_steps -= 1
        self.num_loop_text_chars -= num_chars
        if self.num_steps < 0:
            raise SecurityError(f"more than {_MAX_STEPS} steps")
        if self.num_loop_text_chars < 0:
            raise SecurityError("loops that write too much text")
        if time.monotonic() > self.deadline_s:
            raise SecurityError(f"more than {_MAX_SECONDS:g} seconds")


_BUDGET: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("template_budget", default=None)


@contextlib.contextmanager
def budget() -> Iterator[None]:
    """A fresh budget for the rendering inside the ``with`` block."""
    token = _BUDGET.set(Budget(time.monotonic() + _MAX_SECONDS))
    try:
        yield
    finally:
        _BUDGET.reset(token)


def spend(num_chars: int = 0) -> None:
    """Pay for one step of the rendering that runs in this context, if one does."""
    current = _BUDGET.get()
    if current is not None:
        current.step(num_chars)


def check_value(value: Any) -> Any:
    """Return ``value`` if writing it out stays within bounds: lists that hold themselves many times over do not."""
    if isinstance(value, str):
        if len(value) > MAX_OUTPUT_CHARS:
            raise SecurityError(f"a text of more than {MAX_OUTPUT_CHARS} characters")
        return value
    if not isinstance(value, (list, tuple, dict)):
        return value
    pending: list[Any] = [value]
    num_items = num_chars = 0
    while pending:
        item = pending.pop()
        num_items += 1
        if isinstance(item, str):
            num_chars += len(item)
        elif isinstance(item, dict):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
        if num_items + len(pending) > MAX_ITEMS or num_chars > MAX_OUTPUT_CHARS:
            raise SecurityError("a value too large to write out")
    return value


def held(value: Any) -> Any:
    """An iterator or range as a list, so that it can be checked; anything else as it is."""
    if not isinstance(value, (Iterator, range)):
        return value
    items = list(itertools.islice(value, MAX_ITEMS + 1))
    if len(items) > MAX_ITEMS:
        raise SecurityError("a list too long")
    return items


def check_num_chars(num_chars: int) -> None:
    """Refuse to make a text of so many characters."""
    if num_chars > MAX_OUTPUT_CHARS:
        raise SecurityError(f"a text of more than {MAX_OUTPUT_CHARS} characters")


def check_percent(pattern: str) -> None:
    """Refuse ``%`` formats whose width makes a huge text."""
    if _WIDE_PERCENT.search(pattern):
        raise SecurityError("a format with such a width")


def check_text(name: str, values: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse a filter or method on text (``values[0]``; for ``join`` its items) whose result would be huge."""
    text, args = (values[0] if values else ""), [*values[1:], *kwargs.values()]
    if name == "join" and isinstance(text, (list, tuple)) and args:
        check_num_chars(len(text) * len(str(args[0])))
    if not isinstance(text, str):
        return
    widths = [value for value in args if isinstance(value, int)]
    if name in _PADDING and any(abs(width) > MAX_WIDTH for width in widths):
        raise SecurityError(f"{name} to more than {MAX_WIDTH}")
    if name == "expandtabs":
        check_num_chars(text.count("\t") * max([8, *widths]))
    elif name == "replace" and len(args) > 1:
        old, new = str(args[0]), str(args[1])
        check_num_chars((text.count(old) if old else len(text) + 1) * len(new))
    elif name == "format":
        check_percent(text)
    if name in ("format", "format_map") and _WIDE_FORMAT.search(text):
        raise SecurityError("a format with such a width")


def check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Refuse a method of a built-in value whose result would be huge; returns the arguments, iterators as lists."""
    if name in ("encode", "translate") or isinstance(owner, (int, float)):
        raise SecurityError(f"calling {name}")
    args = tuple(check_value(held(value)) for value in args)
    for value in kwargs.values():
        check_value(value)
    if name in ("index", "count"):
        check_value(owner)
    if isinstance(owner, str):
        check_text(name, [*args, owner] if name == "join" else [owner, *args], kwargs)
    return args


def check_product(operator: str, left: Any, right: Any) -> None:
    """Refuse ``left * right`` or ``left ** right`` that would be huge."""
    if isinstance(left, int) and isinstance(right, int):
        bits = abs(left).bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_INT_BITS:
            raise SecurityError("a number too large")
    for sequence, times in ((left, right), (right, left)):
        limit = MAX_OUTPUT_CHARS if isinstance(sequence, str) else MAX_ITEMS
        if isinstance(sequence, (str, list, tuple)) and isinstance(times, int) and len(sequence) * times > limit:
            raise SecurityError("a text or list repeated too often")
