"""Paddle's own table of flags: what is in it, and how it reads the environment (measured on 3.0.0 and 3.3.1)."""

from __future__ import annotations

import functools
import math
import re
from typing import cast

from paddle_ds.config.memory import FlagValue
from paddle_ds.errors import ConfigError


@functools.cache
def registered() -> frozenset[str]:
    """Names of all flags that this Paddle has."""
    from paddle.base import core

    return frozenset(core.globals().keys())


def value_of(name: str) -> FlagValue:
    """What Paddle says; also of flags that ``paddle.get_flags`` refuses to tell."""
    from paddle.base import core

    return cast(FlagValue, core.globals()[name])


def is_writable(name: str) -> bool:
    """Whether it can be set in a running process."""
    from paddle.base import core

    return bool(core.globals().is_public(name))


def assign(name: str, value: FlagValue) -> None:
    """Set a flag of the right type."""
    import paddle

    paddle.set_flags({name: value})


def check_type(name: str, value: FlagValue) -> None:
    """
    Raises:
        ConfigError: Paddle would refuse ``value`` ("Unable to cast Python instance"), or take it for another one.
    """
    now = value_of(name)
    good = isinstance(value, bool) == isinstance(now, bool) and isinstance(
        value, (int, float) if isinstance(now, float) else type(now)
    )
    if not good:
        raise ConfigError(f"memory.flags: {name} is {value!r}; Paddle has {now!r} there, expected a value of that kind")


def parsed(text: str, like: FlagValue) -> FlagValue:
    """What Paddle makes of a variable's ``text`` for a flag of the type of ``like``. It never complains.

    >>> parsed("yes", False), parsed("2 GB", 0), parsed("abc", 0)
    (False, 2, 0)
    """
    if isinstance(like, bool):
        return text.lower() in ("1", "true")
    if isinstance(like, int):
        found = re.match(r"\s*[+-]?[0-9]+", text)
        return int(found[0]) if found else 0
    if isinstance(like, float):
        return float(text) if is_number(text) else 0.0
    return text


def same(left: FlagValue, right: FlagValue) -> bool:
    """Equal, as far as Paddle keeps a number: some are held in single precision."""
    if isinstance(left, float) or isinstance(right, float):
        return not isinstance(left, str) and not isinstance(right, str) and math.isclose(left, right, rel_tol=1e-6)
    return left == right


def as_variable(value: FlagValue) -> str:
    """``value`` in the form that :func:`parsed` reads back."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def is_number(text: str) -> bool:
    """Whether ``text`` as a whole is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
