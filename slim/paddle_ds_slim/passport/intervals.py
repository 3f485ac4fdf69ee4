"""Intervals for shares of right answers."""

from __future__ import annotations

import dataclasses
import math

#: two-sided 95 % of the normal distribution
_Z = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def share(num_right: int, num_items: int) -> Interval:
    """A proportion with Wilson's score interval (Wilson 1927), which stays within 0 to 1 and is honest for few items."""
    assert 0 <= num_right <= num_items
    assert num_items > 0
    p, n = num_right / num_items, num_items
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n)) / (1 + _Z**2 / n)
    low = middle - half if num_right else 0.0  # exactly, where rounding would leave a trace
    high = middle + half if num_right < num_items else 1.0
    return Interval(p, low, high)


def paired_difference(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """First share minus second share of the same items: method 10 of Newcombe 1998 (Statistics in Medicine 17, 2635-2650).

    It combines Wilson's intervals by the correlation of the pairs, with his continuity correction.
    """
    n = both + only_first + only_second + neither
    first, second = share(both + only_first, n), share(both + only_second, n)
    phi = _correlation(both, only_first, only_second, neither)
    below = _combined(first.value - first.low, second.high - second.value, phi)
    above = _combined(second.value - second.low, first.high - first.value, phi)
    value = first.value - second.value
    return Interval(value, max(-1.0, value - below), min(1.0, value + above))


def _correlation(a: int, b: int, c: int, d: int) -> float:
    scale = (a + b) * (c + d) * (a + c) * (b + d)
    if scale == 0:
        return 0.0
    excess: float = a * d - b * c
    if excess > 0:
        excess = max(excess - (a + b + c + d) / 2, 0.0)
    return excess / math.sqrt(scale)


def _combined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))
