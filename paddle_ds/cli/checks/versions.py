"""What is installed against what is known to work: what the library needs, what its extras need, and pairs that cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from paddle_ds.cli.checks import pins
from paddle_ds.cli.checks.context import Context, canonical
from paddle_ds.cli.checks.deadlocks import deadlocks, told, violated
from paddle_ds.cli.checks.finding import Finding, Level
from paddle_ds.cli.checks.needs import Needs

TOPIC = "versions"


def check(context: Context) -> Iterator[Finding]:
    """Missing packages first, which needs nothing; comparing versions needs ``packaging``."""
    yield from _missing(context)
    yield from _two_builds(context)
    needs = Needs(context)
    stuck = deadlocks(needs, context)
    disputed = {deadlock.package for deadlock in stuck}
    for deadlock in stuck:
        yield told(deadlock, needs, context)
    yield from _compared(context, disputed)
    yield from violated(needs, context, disputed)


def _missing(context: Context) -> Iterator[Finding]:
    if not any(context.version(name) for name in pins.PADDLE_BUILDS):
        text = "paddlepaddle is not installed (needed for everything)"
        yield Finding("package_missing", TOPIC, "error", text, f"pip install {_quoted(pins.PADDLE)}")
    missing = [requirement for requirement in pins.CORE if not context.version(pins.name_of(requirement))]
    if missing:
        names = ", ".join(map(pins.name_of, missing))
        text = f"{names} {'is' if len(missing) == 1 else 'are'} not installed (needed for everything)"
        yield Finding("package_missing", TOPIC, "error", text, _install_all(missing))
    for extra in pins.EXTRAS:
        absent = [requirement for requirement in extra.requirements if not context.version(pins.name_of(requirement))]
        if not context.version(extra.marker):
            yield _without(extra)
            continue
        for requirement in absent:
            text = f"{pins.name_of(requirement)} is not installed (needed for {extra.purpose})"
            yield Finding("package_missing", TOPIC, "warning", text, _command(requirement))


def _without(extra: pins.Extra) -> Finding:
    """Only what a server needs is missed; who wants the others knows."""
    text = f"the extra {extra.name} is not installed ({extra.purpose})"
    command = f"pip install {' '.join(map(_quoted, extra.requirements))}"
    if extra.name == "serving":
        return Finding("extra_missing", TOPIC, "warning", text, command)
    return Finding("extra_missing", TOPIC, "ok", f"{text}: {command}")


def _two_builds(context: Context) -> Iterator[Finding]:
    builds = [name for name in pins.PADDLE_BUILDS if context.version(name)]
    if len(builds) > 1:
        text = f"{' and '.join(builds)} are both installed and provide the same module"
        fix = f"pip uninstall {' '.join(builds)}, all of them, then install the one that you want"
        yield Finding("two_paddles", TOPIC, "error", text, fix)


def _compared(context: Context, disputed: set[str]) -> Iterator[Finding]:
    """Against the pins. ``disputed``: no version of these would do, which was told before."""
    from packaging.requirements import Requirement

    paddle = next((name for name in pins.PADDLE_BUILDS if context.version(name)), None)
    rows: list[tuple[str, str, Level]] = [(requirement, pins.name_of(requirement), "error") for requirement in pins.CORE]
    rows += [(pins.PADDLE, paddle, "error")] if paddle else []
    for extra in pins.EXTRAS:
        if context.version(extra.marker):
            rows += [(requirement, pins.name_of(requirement), "warning") for requirement in extra.requirements]
    done = set()
    for requirement, installed_as, level in rows:
        name, version = pins.name_of(requirement), context.version(installed_as)
        if version is None or canonical(installed_as) in disputed:
            continue
        if not Requirement(requirement).specifier.contains(version, prereleases=True):
            yield Finding("pin_violated", TOPIC, level, f"{name} {version} does not match {requirement}", _command(requirement))
        elif installed_as not in done:
            done.add(installed_as)
            yield Finding("version", TOPIC, "ok", f"{name} {version}" + (f" ({installed_as})" if name != installed_as else ""))


def _command(requirement: str) -> str:
    reason = pins.REASONS.get(pins.name_of(requirement))
    return f"pip install {_quoted(requirement)}" + (f" ({reason})" if reason else "")


def _install_all(requirements: list[str]) -> str:
    """In a checkout, where more is missing than a package or two, one command for all that a server needs."""
    root = Path(__file__).resolve().parents[3]
    if len(requirements) > 2 and (root / "setup.py").is_file():
        return f"{sys.executable} -m pip install '{root}[cpu,serving]' (or, in that directory: make serve)"
    return f"pip install {' '.join(map(_quoted, requirements))}"


def _quoted(requirement: str) -> str:
    return f"'{requirement}'" if set("<>[") & set(requirement) else requirement
