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
from paddle_ds_slim.passport import GateRecord, Passport, judge
from paddle_ds_slim.progress import Progress
from paddle_ds_slim.recipe import REPAIRS, Gate
from paddle_ds_slim.result import QuantizedCheckpoint


@dataclasses.dataclass(frozen=True)
class Repair:
    """One layer that was moved, and what the model measured before."""

    layer: str
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
        if record.passed:
            return dataclasses.replace(record, steps=tuple(dataclasses.asdict(step) for step in steps))
        if None in record.values.values():
            raise QualityGateError(f"{'; '.join(record.complaints)}; name a text or a task to measure it on")
        worst = _worst(result, sizes)
        if worst is None:
            raise _refusal(record, steps, "no layer is left to move")
        layer, error = worst
        before = result.scheme_of(layer)
        result.overrides[layer] = REPAIRS[before][0]
        share = sum(sizes[name] for name in result.overrides) / max(1, sum(sizes.values()))
        if share > gate.max_kept_share:
            moved = f"moving {layer} as well would keep {share:.0%} of the weights in higher precision"
            raise _refusal(record, steps, f"{moved}, above max_kept_share, {gate.max_kept_share:.0%}")
        steps.append(Repair(layer, before, result.overrides[layer], error, record.values))
        progress("repair", f"{layer}: {before} to {result.overrides[layer]}", len(steps), 0)


def _sizes(result: QuantizedCheckpoint) -> dict[str, int]:
    """Linear layer -> number of its weights."""
    specs = [spec for spec in model_specs(result.config) if spec.role in (Role.LINEAR, Role.HEAD)]
    return {spec.name.removesuffix(".weight"): spec.num_elements for spec in specs}


def _worst(result: QuantizedCheckpoint, sizes: Mapping[str, int]) -> tuple[str, float] | None:
    """The layer with the largest output error among those that hold integers."""
    held = (name for name in sizes if result.scheme_of(name) != "dense")
    measured = result.output_errors()
    errors = {name: measured[name] for name in held if name in measured}
    if not errors:
        return None
    layer = max(errors, key=lambda name: (errors[name], name))
    return layer, errors[layer]


def _refusal(record: GateRecord, steps: list[Repair], why: str) -> QualityGateError:
    moved = "; ".join(f"{step.layer} to {step.after} (output error {step.output_error:.3f})" for step in steps) or "none"
    return QualityGateError(
        f"the quantised model is not good enough: {'; '.join(record.complaints)}. It cannot be repaired: {why}. "
        f"Layers moved: {moved}. Nothing was written. Use a gentler recipe (w8a8-smooth, w8a16-rtn), more calibration text, "
        "or larger budgets"
    )
