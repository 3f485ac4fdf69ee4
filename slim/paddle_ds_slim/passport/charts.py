"""Charts as inline SVG, drawn by hand: no library to load, no file beside the page, colours from its style sheet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
#: what is smaller is drawn on the lower edge
_SMALLEST = 1e-9


@dataclasses.dataclass(frozen=True)
class Point:
    """A value over an item. ``css`` names its colour, ``text`` is shown while the pointer rests on it."""

    item: int
    value: float
    css: str
    text: str


def scatter(points: Sequence[Point], num_items: int, groups: Sequence[tuple[int, str]], title: str) -> str:
    """Values over items in order, on a logarithmic axis. ``groups``: first item and label, where a line separates."""
    values = [max(point.value, _SMALLEST) for point in points if math.isfinite(point.value) and point.value > 0] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def x(item: float) -> float:
        return _LEFT + (item + 0.5) / max(1, num_items) * _PLOT_WIDTH

    def y(value: float) -> float:
        if math.isinf(value):
            return float(_TOP)
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return _TOP + (1 - share) * _PLOT_HEIGHT

    parts = [_horizontal(y(10.0**power), f"1e{power}") for power in range(low, high + 1)]
    step = max(1, math.ceil(len(groups) / 16))
    for number, (item, label) in enumerate(groups):
        at = x(item - 0.5)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{_TOP + _PLOT_HEIGHT}"/>')
        if number % step == 0:
            parts.append(f'<text x="{at + 2:.1f}" y="{_HEIGHT - 14}">{escape(label)}</text>')
    for point in points:
        place = f'cx="{x(point.item):.1f}" cy="{y(point.value):.1f}" r="3"'
        parts.append(f'<circle class="{point.css}" {place}><title>{escape(point.text)}</title></circle>')
    return _svg(parts, title)


def histogram(edges: Sequence[float], counts: Sequence[int], title: str, unit: str) -> str:
    """Bars of equal width, one a bin; the first and the last are open to one side."""
    largest = max(max(counts, default=0), 1)
    width = _PLOT_WIDTH / max(1, len(counts))
    parts = [_horizontal(_TOP + (1 - share) * _PLOT_HEIGHT, f"{share * largest:.0f}") for share in (0, 0.5, 1)]
    for number, count in enumerate(counts):
        height = count / largest * _PLOT_HEIGHT
        left, top = _LEFT + number * width, _TOP + _PLOT_HEIGHT - height
        box = f'x="{left + 1:.1f}" y="{top:.1f}" width="{max(width - 2, 1):.1f}" height="{height:.1f}"'
        bounds = _bounds(edges, number, unit)
        parts.append(f'<rect class="quantized" {box}><title>{escape(f"{bounds}: {count}")}</title></rect>')
    for number in range(0, len(edges), 2):
        at = _LEFT + (number + 1) * width
        parts.append(f'<text text-anchor="middle" x="{at:.1f}" y="{_HEIGHT - 14}">{edges[number]:g}</text>')
    return _svg(parts, title)


def _bounds(edges: Sequence[float], number: int, unit: str) -> str:
    if number == 0:
        return f"below {edges[0]:g} {unit}"
    if number == len(edges):
        return f"{edges[-1]:g} {unit} and more"
    return f"{edges[number - 1]:g} to {edges[number]:g} {unit}"


def _horizontal(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
    return f'{line}<text text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{escape(label)}</text>'


def _svg(parts: Sequence[str], title: str) -> str:
    name = escape(title, quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
