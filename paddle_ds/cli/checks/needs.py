"""Who among the installed packages needs which versions of whom: read from their metadata, with the few that are not declared."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from paddle_ds.cli.checks import pins
from paddle_ds.cli.checks.context import Context, canonical

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version


@dataclasses.dataclass(frozen=True)
class Demand:
    """``by`` (canonical name of an installed package) wants a version of ``package`` within ``versions``."""

    by: str
    package: str
    versions: SpecifierSet
    #: why it holds, where the metadata do not say so
    undeclared: str = ""


class Needs:
    """All demands of one environment. Extras that packages merely offer are not among them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.demands = tuple(_demands(context))

    @functools.cached_property
    def by_package(self) -> dict[str, list[Demand]]:
        """Name of the wanted package -> who wants what of it."""
        found: dict[str, list[Demand]] = {}
        for demand in self.demands:
            found.setdefault(demand.package, []).append(demand)
        return found

    @functools.cached_property
    def ours(self) -> set[str]:
        """Installed packages that Paddle-DS uses in some way, with all that those need in turn."""
        return self._reached({*pins.PADDLE_BUILDS, *pins.names()})

    @functools.cached_property
    def vital(self) -> set[str]:
        """The part of :attr:`ours` without which no server runs."""
        return self._reached({*pins.PADDLE_BUILDS, *map(pins.name_of, pins.CORE)})

    def met(self, demand: Demand) -> bool:
        """Whether what is installed satisfies ``demand``."""
        version = self._context.version(demand.package)
        return version is not None and demand.versions.contains(version, prereleases=True)

    def said(self, demand: Demand) -> str:
        """``paddlenlp 3.0.0b4 needs numpy<=1.26.4``."""
        why = f" ({demand.undeclared})" if demand.undeclared else ""
        return f"{demand.by} {self._context.version(demand.by)} needs {demand.package}{demand.versions}{why}"

    def dependents(self, package: str) -> set[str]:
        """Installed packages that need ``package``, directly or not: they go where it goes."""
        found: set[str] = set()
        waiting = [package]
        while waiting:
            more = {demand.by for demand in self.by_package.get(waiting.pop(), ())} - found - {package}
            found |= more
            waiting += more
        return found

    def violated_pins(self, package: str) -> list[str]:
        """Our pins of ``package`` and of what needs it that the installed versions do not match; empty where ``package`` does."""
        from packaging.requirements import Requirement

        found = {}
        for extra in pins.EXTRAS:
            for text in extra.requirements if self._context.version(extra.marker) else ():
                pin = Requirement(text)
                version = self._context.version(pin.name)
                if version is not None and not pin.specifier.contains(version, prereleases=True):
                    found[canonical(pin.name)] = text
        concerned = {package, *self.dependents(package)}
        return [text for name, text in found.items() if name in concerned] if package in found else []

    def _reached(self, names: Iterable[str]) -> set[str]:
        needs: dict[str, set[str]] = {}
        for demand in self.demands:
            needs.setdefault(demand.by, set()).add(demand.package)
        found: set[str] = set()
        waiting = [canonical(name) for name in names]
        while waiting:
            name = waiting.pop()
            if name not in found and self._context.version(name):
                found.add(name)
                waiting += needs.get(name, ())
        return found


def _demands(context: Context) -> Iterator[Demand]:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import SpecifierSet

    for by, distribution in context.installed.items():
        for text in distribution.requires:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:  # of before PEP 508; pip does not understand it either
                continue
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield Demand(by, canonical(requirement.name), requirement.specifier)
    for row in pins.UNDECLARED:
        version = context.version(row.package)
        if version is not None and SpecifierSet(row.versions).contains(version, prereleases=True):
            requirement = Requirement(row.requirement)
            yield Demand(row.package, canonical(requirement.name), requirement.specifier, row.reason)


def compatible(one: SpecifierSet, other: SpecifierSet) -> bool:
    """Whether some version is in both. Only at the versions that they name, and right beside those, can the answer change."""
    both = one & other
    return not len(both) or any(both.contains(version, prereleases=True) for version in _candidates(both))


def _candidates(both: SpecifierSet) -> Iterator[Version]:
    from packaging.version import InvalidVersion, Version

    for specifier in both:
        try:
            version = Version(specifier.version.removesuffix(".*"))
        except InvalidVersion:  # === compares text
            continue
        yield version
        release = list(version.release)
        yield Version(f"{version.epoch}!{'.'.join(map(str, [*release, 0, 1]))}")  # right above
        for place in range(len(release)):  # right below, and below each of its longer units
            if release[place]:
                below = [*release[:place], release[place] - 1, 999999]
                yield Version(f"{version.epoch}!{'.'.join(map(str, below))}")
