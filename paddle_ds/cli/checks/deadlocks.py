"""Demands of installed packages that no version of a third one meets together, and those that just the installed one does not.

paddlenlp wants aistudio-sdk<0.3  ─┐
                                   ├─ no version is both: a deadlock, whatever pip is told to install
paddlex wants aistudio-sdk>=0.3.5 ─┘
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import combinations

from paddle_ds.cli.checks import pins
from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding, Level
from paddle_ds.cli.checks.needs import Demand, Needs, compatible

_TOPIC = "versions"


@dataclasses.dataclass(frozen=True)
class Deadlock:
    """Two demands that no version meets. ``one`` is of a package of ours."""

    one: Demand
    other: Demand

    @property
    def package(self) -> str:
        return self.one.package


def deadlocks(needs: Needs, context: Context) -> list[Deadlock]:
    """Pairs of demands that cannot both be met, where one of the two parties is ours or is needed by ours."""
    found = []
    for package, wanted in sorted(needs.by_package.items()):
        if context.version(package):
            pairs = [pair for pair in combinations(wanted, 2) if {demand.by for demand in pair} & needs.ours]
            for one, other in pairs:
                if not compatible(one.versions, other.versions):
                    found.append(Deadlock(one, other) if one.by in needs.ours else Deadlock(other, one))
    return found


def told(deadlock: Deadlock, needs: Needs, context: Context) -> Finding:
    """With both parties by name and version, and the command."""
    demands = (deadlock.one, deadlock.other)
    said = " and ".join(map(needs.said, demands))
    text = f"{said}: no version is both; {deadlock.package} {context.version(deadlock.package)} is installed"
    unmet = {demand.by for demand in demands if not needs.met(demand)}
    level: Level = "error" if unmet & needs.vital else "warning"
    return Finding("pin_deadlock", _TOPIC, level, text, _cure(deadlock, needs, context))


def _cure(deadlock: Deadlock, needs: Needs, context: Context) -> str:
    """Other versions of the parties where our own pins name some; else one of the parties has to go."""
    one, other = deadlock.one, deadlock.other
    pinned = dict.fromkeys(pin for demand in (one, other) for pin in needs.violated_pins(demand.by))
    if pinned:
        return "pip install " + " ".join(f"'{pin}'" for pin in pinned)
    if other.by in needs.ours:
        return "install one of the two in an environment of its own: python -m venv DIRECTORY"
    names = " ".join([other.by, *sorted(needs.dependents(other.by))])
    then = pins.pin_of(deadlock.package, context) or f"{one.package}{one.versions}"
    return (
        f"pip uninstall {names} && pip install '{then}'; to keep both, give {other.by} an environment of its own: "
        "python -m venv DIRECTORY"
    )


def violated(needs: Needs, context: Context, disputed: set[str]) -> Iterator[Finding]:
    """Demands of ours that the installed version does not meet, though some version would. ``disputed``: packages in deadlocks.

    What a pin of ours says is left out: comparing with the pins tells it.
    """
    compared = pins.wanted(context)
    for package, wanted in sorted(needs.by_package.items()):
        unmet = [demand for demand in wanted if demand.by in needs.ours and not needs.met(demand)]
        here = context.version(package)
        if not unmet or package in disputed or (needs.violated_pins(package) if here else package in compared):
            continue
        level: Level = "error" if {demand.by for demand in unmet} & needs.vital else "warning"
        together = ",".join(sorted({str(one) for demand in wanted for one in demand.versions}))
        said, fix = " and ".join(map(needs.said, unmet)), f"pip install '{package}{together}'"
        if here:
            yield Finding("requirement_violated", _TOPIC, level, f"{said}, but {package} {here} is installed", fix)
        else:
            yield Finding("requirement_missing", _TOPIC, level, f"{said}, which is not installed", fix)
