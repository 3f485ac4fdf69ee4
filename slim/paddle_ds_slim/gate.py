"""The gate: a quantised model that is not good enough is repaired, or refused.

While a budget is exceeded, the linear layer with the largest relative output error goes to the next higher precision (W4A16 or
W8A8 to W8A16, that to floating point), and the model is measured again. When the layers moved hold more than ``max_kept_share``
of all linear weights, it is no longer the model that was asked for, and :class:`QualityGateError` ends the run before anything is
written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.errors import QualityGateError
from paddle_ds_slim.progress import Progress
from paddle_ds_slim.recipe import REPAIRS, Gate
from paddle_ds_slim.result import QuantizedCheckpoint

#: budget -> what is held against it, measured; a budget that was not measured is absent
Values = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Repair:
    """One layer that was moved, and what the model measured before."""

    layer: str
    before: Scheme
    after: Scheme
    output_error: float
    values: dict[str, float]


@dataclasses.dataclass(frozen=True)
class GateReport:
    """What the passport says of the gate. ``values`` are those of the model as it is written."""

    budgets: dict[str, float]
    values: dict[str, float]
    passed: bool
    kept_share: float
    steps: tuple[Repair, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def budgets_of(gate: Gate) -> dict[str, float]:
    """The budgets that are asked for."""
    asked = {"max_kl": gate.max_kl, "max_ppl_increase": gate.max_ppl_increase, "max_task_drop": gate.max_task_drop}
    return {name: value for name, value in asked.items() if value is not None}


def exceeded(budgets: Mapping[str, float], values: Values) -> list[str]:
    """Budgets that do not hold; a value that is not a number holds none.

    Raises:
        QualityGateError: a budget is set and nothing was measured that it could be held against.
    """
    missing = [name for name in budgets if name not in values]
    if missing:
        raise QualityGateError(f"{missing[0]} is set, but nothing was measured for it; name a text or a task to measure it on")
    return [name for name, budget in budgets.items() if not values[name] <= budget]


def hold(result: QuantizedCheckpoint, gate: Gate, measure: Callable[[], Values], progress: Progress) -> GateReport:
    """Repair ``result`` (by its ``overrides``) until every budget of ``gate`` holds.

    Args:
        measure: the values of ``result`` as it is at the call.

    Raises:
        QualityGateError: the budgets cannot be held; the message says which layers were moved, and why it ended.
    """
    budgets = budgets_of(gate)
    sizes = _sizes(result)
    steps: list[Repair] = []
    while True:
        values = dict(measure())
        broken = exceeded(budgets, values)
        if not broken:
            return GateReport(budgets, values, True, _kept_share(result, sizes), tuple(steps))
        worst = _worst(result, sizes)
        if worst is None:
            raise _refusal(broken, budgets, values, steps, "no layer is left to move")
        layer, error = worst
        before = result.scheme_of(layer)
        result.overrides[layer] = _next(result, layer)
        share = _kept_share(result, sizes)
        if share > gate.max_kept_share:
            moved = f"moving {layer} as well would keep {share:.0%} of the weights in higher precision"
            raise _refusal(broken, budgets, values, steps, f"{moved}, above max_kept_share {gate.max_kept_share:.0%}")
        steps.append(Repair(layer, before, result.overrides[layer], error, values))
        progress("repair", f"{layer}: {before} to {result.overrides[layer]}", len(steps), 0)


def _sizes(result: QuantizedCheckpoint) -> dict[str, int]:
    """Linear layer -> number of its weights."""
    specs = [spec for spec in model_specs(result.config) if spec.role in (Role.LINEAR, Role.HEAD)]
    return {spec.name.removesuffix(".weight"): spec.num_elements for spec in specs}


def _worst(result: QuantizedCheckpoint, sizes: Mapping[str, int]) -> tuple[str, float] | None:
    errors = {
        layer: result.output_error(layer)
        for layer in sizes
        if result.scheme_of(layer) != "dense" and result.output_error(layer) is not None
    }
    known = {layer: error for layer, error in errors.items() if error is not None}
    if not known:
        return None
    layer = max(known, key=lambda name: (known[name], name))
    return layer, known[layer]


def _next(result: QuantizedCheckpoint, layer: str) -> Scheme:
    return REPAIRS[result.scheme_of(layer)][0]


def _kept_share(result: QuantizedCheckpoint, sizes: Mapping[str, int]) -> float:
    return sum(sizes[layer] for layer in result.overrides) / max(1, sum(sizes.values()))


def _refusal(broken: list[str], budgets: Mapping[str, float], values: Values, steps: list[Repair], why: str) -> QualityGateError:
    figures = ", ".join(f"{name} {budgets[name]:g}: measured {values[name]:.4g}" for name in broken)
    moved = "; ".join(f"{step.layer} to {step.after} (output error {step.output_error:.3f})" for step in steps) or "none"
    return QualityGateError(
        f"the quantised model is not good enough ({figures}), and {why}. Layers moved: {moved}. "
        "Nothing was written. Use a gentler recipe (w8a8-smooth, w8a16-rtn), more calibration text, or larger budgets"
    )
