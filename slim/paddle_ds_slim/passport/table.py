"""The passport on a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from paddle_ds.runtime.memory_plan import readable_bytes
from paddle_ds_slim.passport.html import number, percent, verdict
from paddle_ds_slim.passport.record import Passport, Ratio

#: layers that are listed
_WORST_LAYERS = 5


def print_passport(passport: Passport, console: Console) -> None:
    """The figures side by side, the worst layers, and the verdict."""
    has_reference = passport.reference is not None
    table = Table("", *(["reference"] if has_reference else []), "quantised" if has_reference else "measured", "", box=None)

    def row(label: str, reference: str, quantized: str, note: str = "") -> None:
        table.add_row(label, *([reference] if has_reference else []), quantized, note)

    if passport.reference is not None:
        row("model", passport.reference.name, passport.quantized.name)
        row("runs as", passport.reference.quant, passport.quantized.quant)
    else:
        row("model", "", passport.quantized.name)
        row("runs as", "", passport.quantized.quant)
    for name, change in passport.loss.items():
        row(f"loss {name}", number(change.reference), number(change.quantized), _signed(change.increase))
    for name, change in passport.perplexity.items():
        row(f"perplexity {name}", number(change.reference), number(change.quantized), _signed(change.increase))
    if passport.kl is not None:
        kl = passport.kl
        row("KL divergence, nats", "", number(kl.mean), f"p99 {number(kl.p99)}, largest {number(kl.max)}")
    if passport.top1_agreement is not None:
        row("same most probable token", "", percent(passport.top1_agreement))
    if passport.greedy is not None:
        greedy = passport.greedy
        whole = f"{percent(greedy.whole)} of {greedy.num_prompts} to the end"
        row("same greedy tokens", "", f"{number(greedy.mean)} of {greedy.max_tokens}", whole)
    _answers(passport, row)
    sizes, speed = passport.bytes, passport.decode_tokens_per_s
    row("weights on disk", _bytes(sizes.reference), _bytes(sizes.quantized), _factor(sizes))
    row("loading, s", number(passport.load_s.reference), number(passport.load_s.quantized))
    if speed is not None:
        row("decoded tokens/s", number(speed.reference), number(speed.quantized), _factor(speed))
    console.print(table)
    _layers(passport, console)
    style = "" if not passport.gate.budgets else "green" if passport.gate.passed else "red"
    console.print(verdict(passport), style=f"bold {style}".strip(), highlight=False, markup=False)
    for complaint in passport.gate.complaints:
        console.print(f"  {complaint}", highlight=False, markup=False)


def _answers(passport: Passport, row: Callable[..., None]) -> None:
    for name, task in passport.tasks.items():
        ours, theirs = task.quantized, task.reference
        note = f"of {task.num_items}, 95 % {percent(ours.low)} to {percent(ours.high)}"
        row(f"exact match {name}", percent(theirs.exact_match) if theirs else "", percent(ours.exact_match), note)
    health = passport.reasoning
    if health is None:
        return
    for label, pair in (("reasoning that ends", health.closed), ("answers that loop", health.loops)):
        if pair is not None:
            row(label, percent(pair.reference), percent(pair.quantized), f"of {health.num_answers} answers")
    lengths = health.mean_tokens
    row("tokens of an answer", number(lengths.reference), number(lengths.quantized), _factor(lengths))


def _layers(passport: Passport, console: Console) -> None:
    worst = sorted(passport.layers, key=lambda layer: -(layer.output_error or layer.weight_error or 0.0))[:_WORST_LAYERS]
    if not worst:
        return
    table = Table("layers with the largest error", "scheme", "weight", "output", box=None)
    for layer in worst:
        table.add_row(layer.name, layer.scheme, number(layer.weight_error), number(layer.output_error))
    console.print()
    console.print(table)
    console.print()


def _signed(value: float | None) -> str:
    return "" if value is None else percent(value, signed=True)


def _factor(ratio: Ratio) -> str:
    return "" if ratio.ratio is None else f"× {number(ratio.ratio)}"


def _bytes(value: float | None) -> str:
    return "" if value is None else readable_bytes(int(value))
