"""The passport as one page for people: no script, no file beside it, light and dark, readable on a phone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from paddle_ds.runtime.memory_plan import readable_bytes
from paddle_ds_slim.passport.charts import Point, histogram, scatter
from paddle_ds_slim.passport.page_style import STYLE
from paddle_ds_slim.passport.record import Change, LayerError, Passport, Task, write_whole

#: name of the page in a checkpoint's directory
FILE_NAME = "passport.html"
_DECODER_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_UNKNOWN = "–"


def write_html(passport: Passport, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        QuantizationError: the disk refuses.
    """
    write_whole(path, page(passport))


def page(passport: Passport) -> str:
    """The page as text."""
    name = escape(passport.quantized.name)
    sections = [
        _header(passport),
        _cards(passport),
        _section("Before and after", _before_and_after(passport)),
        _section("Error of each layer", _layers(passport.layers)) if passport.layers else "",
        _section("KL divergence of next-token distributions", _divergence(passport)) if passport.kl else "",
        _section("Gate", _gate(passport)) if passport.gate.budgets else "",
        _section("What was measured", _measured(passport)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>Quality of {name}</title><style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )  # fmt: skip


def verdict(passport: Passport) -> str:
    """One sentence: whether the budgets hold."""
    gate = passport.gate
    if not gate.budgets:
        return "No budgets were set"
    if not gate.passed:
        return "Over its budget"
    steps = len(gate.steps)
    repaired = "" if not steps else f", after {steps} layer{'s were' if steps > 1 else ' was'} moved to a higher precision"
    return f"Within its budgets{repaired}"


def _header(passport: Passport) -> str:
    ours, theirs = passport.quantized, passport.reference
    css = "open" if not passport.gate.budgets else "good" if passport.gate.passed else "bad"
    against = f"against {escape(theirs.name)} in floating point" if theirs else "without a reference"
    runs = f"{escape(ours.quant)}, {escape(ours.format)}, cache {escape(ours.kv_dtype)}"
    complaints = f"<ul>{_items(passport.gate.complaints)}</ul>" if passport.gate.complaints else ""
    quick = " A quick measurement: layers, continuations and speed were left out." if passport.quick else ""
    return (
        f"<header><h1>{escape(ours.name)}</h1><p class='verdict {css}'>{escape(verdict(passport))}</p>{complaints}"
        f"<p>{runs}, measured {against}.{quick}</p></header>"
    )


def _cards(passport: Passport) -> str:
    worst = max((c for c in passport.perplexity.values() if c.increase is not None), key=lambda c: c.increase or 0, default=None)
    cards = [
        ("mean KL divergence, nats", number(passport.kl.mean) if passport.kl else None),
        ("perplexity, largest increase", percent(worst.increase, signed=True) if worst else None),
        ("same most probable token", percent(passport.top1_agreement)),
        ("size by the reference's", percent(passport.bytes.ratio)),
        ("decoding speed by the reference's", _times(passport)),
    ]
    shown = [(label, value) for label, value in cards if value not in (None, _UNKNOWN)]
    return "<ul class='cards'>" + "".join(f"<li><b>{value}</b>{escape(label)}</li>" for label, value in shown) + "</ul>"


def _times(passport: Passport) -> str | None:
    speed = passport.decode_tokens_per_s
    return f"{speed.ratio:.2f}×" if speed and speed.ratio is not None else None


def _before_and_after(passport: Passport) -> str:
    rows = [_bars(f"mean loss, {name}", c.reference, c.quantized, _change(c)) for name, c in passport.loss.items()]
    rows += [_bars(f"exact match, {name}", *_shares(task), _task_note(task)) for name, task in passport.tasks.items()]
    health = passport.reasoning
    if health is not None:
        if health.closed is not None:
            note = f"of {health.num_answers} answers"
            rows.append(_bars("reasoning that ends", health.closed.reference, health.closed.quantized, note))
        rows.append(_bars("answers that loop", health.loops.reference, health.loops.quantized, f"of {health.num_answers}"))
        lengths = health.mean_tokens
        rows.append(_bars("tokens of an answer", lengths.reference, lengths.quantized, _factor(lengths.ratio)))
    sizes = passport.bytes
    rows.append(_bars("weights on disk", sizes.reference, sizes.quantized, _factor(sizes.ratio), readable=True))
    speed = passport.decode_tokens_per_s
    if speed is not None:
        rows.append(_bars("decoded tokens a second", speed.reference, speed.quantized, _factor(speed.ratio)))
    rows.append(_bars("loading, seconds", passport.load_s.reference, passport.load_s.quantized, ""))
    return _legend(("reference", "reference"), ("quantized", "quantised")) + "".join(rows) + _greedy(passport)


def _shares(task: Task) -> tuple[float | None, float]:
    return (task.reference.exact_match if task.reference else None), task.quantized.exact_match


def _task_note(task: Task) -> str:
    ours = f"{task.quantized.num_right} of {task.num_items}, 95 % {percent(task.quantized.low)} to {percent(task.quantized.high)}"
    if task.drop is None:
        return ours
    drop = task.drop
    return f"{ours}; drop {number(drop.value)} ({number(drop.low)} to {number(drop.high)})"


def _bars(label: str, reference: float | None, quantized: float | None, note: str, *, readable: bool = False) -> str:
    largest = max(reference or 0.0, quantized or 0.0) or 1.0
    lines = []
    for css, value in (("reference", reference), ("quantized", quantized)):
        if value is None and css == "reference":
            continue
        share = 0.0 if value is None or value != value or value <= 0 else min(100.0, 100 * value / largest)
        shown = readable_bytes(int(value)) if readable and value is not None else number(value)
        bar = f"<div class='bar'><i class='{css}' style='width:{share:.1f}%'></i></div>"
        lines.append(f"<div class='line'>{bar}<span>{escape(shown)}</span></div>")
    return f"<div class='pair'><p>{escape(label)} <small>{escape(note)}</small></p>{''.join(lines)}</div>"


def _greedy(passport: Passport) -> str:
    greedy = passport.greedy
    if greedy is None:
        return ""
    return (
        f"<p>Greedy continuations of {greedy.num_prompts} prompts by at most {greedy.max_tokens} tokens agree for "
        f"{number(greedy.mean)} tokens on average (median {number(greedy.median)}); {percent(greedy.whole)} agree to the end.</p>"
    )


def _layers(layers: Sequence[LayerError]) -> str:
    points, groups, seen = [], [], set()
    for item, layer in enumerate(layers):
        found = _DECODER_LAYER.match(layer.name)
        label = found[1] if found else layer.name
        if label not in seen:
            seen.add(label)
            groups.append((item, label))
        for css, what, value in (("weight", "weight", layer.weight_error), ("output", "output", layer.output_error)):
            if value is not None and not math.isnan(value):
                points.append(Point(item, value, css, f"{layer.name} ({layer.scheme}): {what} error {value:.3g}"))
    chart = scatter(points, len(layers), groups, "relative error of each linear layer, by decoder layer")
    rows = [(layer.name, layer.scheme, number(layer.weight_error), number(layer.output_error)) for layer in layers]
    table = _table(("layer", "scheme", "weight error", "output error"), rows)
    legend = _legend(("weight", "weight"), ("output", "output, on inputs of the reference"))
    if any(point.value == 0 for point in points):
        legend += "<p><small>On the lower edge: no error at all.</small></p>"
    return f"{legend}<div class='chart'>{chart}</div><details><summary>All {len(layers)} layers</summary>{table}</details>"


def _divergence(passport: Passport) -> str:
    kl = passport.kl
    assert kl is not None
    chart = histogram(kl.histogram.edges, kl.histogram.counts, "tokens by KL divergence in nats", "nats")
    text = f"{kl.num_tokens} tokens: mean {number(kl.mean)}, 99 % below {number(kl.p99)}, largest {number(kl.max)} nats."
    return f"<p>{text}</p><div class='chart'>{chart}</div>"


def _gate(passport: Passport) -> str:
    gate = passport.gate
    rows = [(name, number(limit), number(gate.values.get(name))) for name, limit in gate.budgets.items()]
    table = _table(("budget", "at most", "measured"), rows)
    if not gate.steps:
        return table
    steps = [", ".join(f"{key} {_short(value)}" for key, value in step.items()) for step in gate.steps]
    return f"{table}<p>Moved to a higher precision, in this order:</p><ol>{_items(steps)}</ol>"


def _measured(passport: Passport) -> str:
    data = passport.data
    sources = [("text", name, s) for name, s in data.texts.items()] + [("task", name, s) for name, s in data.tasks.items()]
    sources += [("greedy", "prompts", data.greedy)] if data.greedy else []
    rows = [(kind, name, s.source, str(s.count), s.sha256) for kind, name, s in sources]
    made = "" if passport.quantization is None else _details("How it was made", _tree(passport.quantization))
    return (
        _table(("", "name", "from", "count", "sha256 of token ids"), rows)
        + made
        + _details("Settings", _tree(data.settings))
        + _details("Versions", _tree(passport.versions))
    )


def number(value: float | None) -> str:
    """For people: four digits."""
    if value is None or value != value:
        return _UNKNOWN
    return f"{value:.4g}"


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share or a relative change."""
    if value is None or value != value:
        return _UNKNOWN
    return f"{100 * value:{'+' if signed else ''}.3g} %"


def _change(change: Change) -> str:
    return percent(change.increase, signed=True) if change.increase is not None else ""


def _factor(value: float | None) -> str:
    return "" if value is None else f"× {number(value)}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_short(item)}" for key, item in value.items()) + ")"
    return str(value)


def _tree(values: Any) -> str:
    if isinstance(values, Mapping):
        return "<dl>" + "".join(f"<dt>{escape(str(key))}</dt><dd>{_tree(item)}</dd>" for key, item in values.items()) + "</dl>"
    if isinstance(values, (list, tuple)):
        return escape(", ".join(_short(item) for item in values))
    return escape(_UNKNOWN if values is None else _short(values))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _legend(*entries: tuple[str, str]) -> str:
    return "<p class='legend'>" + " ".join(f"<span><i class='{css}'></i>{escape(text)}</span>" for css, text in entries) + "</p>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)
