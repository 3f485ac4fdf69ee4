"""The gate: a quantised model that is not good enough is repaired, or refused.

While a budget is exceeded, the linear layer with the largest relative output error goes to the next higher precision (W4A16 or
W8A8 to W8A16, that to floating point), and the model is measured again. When the layers moved hold more than ``max_kept_share``
of all linear weights, it is no longer the model that was asked for, and :class:`QualityGateError` ends the run before anything is
written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.errors import QualityGateError
from paddle_ds_slim.block_state import READERS
from paddle_ds_slim.passport import GateRecord, Passport, judge
from paddle_ds_slim.progress import Progress
from paddle_ds_slim.recipe import REPAIRS, Gate
from paddle_ds_slim.result import QuantizedCheckpoint


@dataclasses.dataclass(frozen=True)
class Repair:
    """One layer that was moved, and what the model measured before."""

    layer: str
    #: those that read the same input and go along: other engines hold them as one, in one scheme
    beside: tuple[str, ...]
    before: Scheme
    after: Scheme
    output_error: float
    values: Mapping[str, float | None]


def hold(result: QuantizedCheckpoint, gate: Gate, measure: Callable[[], Passport], progress: Progress) -> GateRecord:
    """Repair ``result`` (by its ``overrides``) until every budget of ``gate`` holds.

    Args:
        measure: measures ``result`` as it is at the call.

    Raises:
        QualityGateError: the budgets cannot be held; the message says which layers were moved, and why it ended.
    """
    sizes = _sizes(result)
    steps: list[Repair] = []
    while True:
        record = judge(measure(), gate)
        if record.passed and not result.schemes() and result.kv_cache() is None:
            raise _refusal(record, steps, "no layer would be left quantised")
        if record.passed:
            return dataclasses.replace(record, steps=tuple(dataclasses.asdict(step) for step in steps))
        if None in record.values.values():
            raise QualityGateError(f"{'; '.join(record.complaints)}; name a text or a task to measure it on")
        worst = _worst(result, sizes, gate.max_kept_share)
        if worst is None:
            share = f"moving one more layer would keep more than {gate.max_kept_share:.0%} of the weights in higher precision"
            raise _refusal(record, steps, f"{share} (max_kept_share), or none is left")
        layer, error = worst
        before, beside = result.scheme_of(layer), _beside(result, layer, sizes)
        for name in (layer, *beside):
            result.overrides[name] = REPAIRS[before][0]
        steps.append(Repair(layer, beside, before, result.overrides[layer], error, record.values))
        progress("repair", f"{layer}: {before} to {result.overrides[layer]}", len(steps), 0)


def _sizes(result: QuantizedCheckpoint) -> dict[str, int]:
    """Linear layer -> number of its weights."""
    specs = [spec for spec in model_specs(result.config) if spec.role in (Role.LINEAR, Role.HEAD)]
    return {spec.name.removesuffix(".weight"): spec.num_elements for spec in specs}


def _beside(result: QuantizedCheckpoint, layer: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The other layers of the same scheme that read what ``layer`` reads."""
    prefix, _, short = layer.rpartition(".self_attn.") if ".self_attn." in layer else layer.rpartition(".mlp.")
    part = layer[len(prefix) : -len(short)].strip(".")
    group = READERS.get(f"{part}.{short}")
    names = [f"{prefix}.{name}" for name, first in READERS.items() if first == group and group is not None]
    same = result.scheme_of(layer)
    return tuple(name for name in names if name in sizes and name != layer and result.scheme_of(name) == same)


def _worst(result: QuantizedCheckpoint, sizes: Mapping[str, int], max_share: float) -> tuple[str, float] | None:
    """The layer with the largest output error among those that hold integers and may still be moved."""
    room = max_share * sum(sizes.values()) - sum(sizes[name] for name in result.overrides)

    def fits(name: str) -> bool:
        new = {name, *_beside(result, name, sizes)} - result.overrides.keys()
        return sum(sizes[member] for member in new) <= room

    measured = result.output_errors()
    held = (name for name in sizes if result.scheme_of(name) != "dense" and name in measured)
    errors = {name: measured[name] for name in held if fits(name)}
    if not errors:
        return None
    layer = max(errors, key=lambda name: (errors[name], name))
    return layer, errors[layer]


def _refusal(record: GateRecord, steps: list[Repair], why: str) -> QualityGateError:
    moved = (
        "; ".join(
            f"{', '.join((step.layer, *step.beside))} to {step.after} (output error {step.output_error:.3f})" for step in steps
        )
        or "none"
    )
    return QualityGateError(
        f"the quantised model is not good enough: {'; '.join(record.complaints) or 'no layer of it is quantised'}. It cannot be "
        f"repaired: {why}. Layers moved: {moved}. Nothing was written; finished layers are kept, so a run with larger budgets is "
        "quick. Use a gentler recipe (w8a8-smooth, w8a16-rtn), more calibration text, or larger budgets"
    )
