"""A passport against budgets. What to do about one that is over them is another module's matter."""

from __future__ import annotations

from paddle_ds.errors import QualityGateError
from paddle_ds_slim.passport.record import GateRecord, Passport
from paddle_ds_slim.recipe import Gate

_BUDGETS = ("max_kl", "max_ppl_increase", "max_task_drop")


def judge(passport: Passport, budgets: Gate) -> GateRecord:
    """Hold the passport's figures against ``budgets``. A figure that is no number, or was not measured, holds no budget.

    ``max_kl`` is of ``kl.mean`` in nats, ``max_ppl_increase`` of the largest ``perplexity.*.increase``, ``max_task_drop`` of the
    largest ``tasks.*.drop.value``.
    """
    increases = [change.increase for change in passport.perplexity.values()]
    drops = [None if task.drop is None else task.drop.value for task in passport.tasks.values()]
    figures = {
        "max_kl": (None if passport.kl is None else passport.kl.mean, "the mean KL divergence", " nats"),
        "max_ppl_increase": (_largest(increases), "the largest increase of perplexity", ""),
        "max_task_drop": (_largest(drops), "the largest drop of exact match", ""),
    }
    limits: dict[str, float] = {name: getattr(budgets, name) for name in _BUDGETS if getattr(budgets, name) is not None}
    complaints: list[str] = []
    for name, limit in limits.items():
        value, what, unit = figures[name]
        if value is None:
            complaints.append(f"{what} was not measured; {name} allows {limit:g}{unit}")
        elif not value <= limit:  # NaN is over every budget
            complaints.append(f"{what} is {value:.4g}{unit}; {name} allows {limit:g}")
    return GateRecord(not complaints, limits, {name: figures[name][0] for name in limits}, tuple(complaints))


def require(gate: GateRecord, name: str) -> None:
    """Raise unless ``gate`` passed.

    Raises:
        QualityGateError: ``name`` is over a budget; the message has every figure.
    """
    if not gate.passed:
        raise QualityGateError(f"{name} is over its budget: {'; '.join(gate.complaints)}")


def _largest(values: list[float | None]) -> float | None:
    """NaN where one is; ``None`` where one was not measured, or there are none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return next((value for value in known if value != value), max(known))
