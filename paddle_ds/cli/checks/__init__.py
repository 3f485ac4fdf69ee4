"""What ``paddle-ds doctor`` looks at: one file a topic. At module level, only the standard library."""

from __future__ import annotations

from collections.abc import Iterator

from paddle_ds.cli.checks import compiler, device_versions, devices, machine, model, server, system, versions
from paddle_ds.cli.checks.context import Check, Context, Distribution, Questions, distributions, run
from paddle_ds.cli.checks.finding import CODES, Finding, Level

__all__ = ["CHECKS", "CODES", "Context", "Distribution", "Finding", "Level", "Questions", "distributions", "examine"]

#: what is looked at, in the order of the report
CHECKS: tuple[Check, ...] = (
    ("paddle-ds", system.program),
    ("environment", system.environment),
    ("versions", versions.check),
    ("versions", device_versions.check),
    ("compiler", compiler.check),
    ("processor", machine.processor),
    ("numa", machine.nodes),
    ("huge-pages", machine.huge_pages),
    ("limits", machine.control_groups),
    ("limits", machine.files),
    ("limits", machine.shared_memory),
    ("directories", server.directories),
    ("server", server.address),
    ("environment", system.before_paddle),
    ("model", model.check),
    ("devices", devices.check),
)


def examine(context: Context | None = None) -> Iterator[Finding]:
    """Every finding on this machine. Needs no network, and nothing but the standard library to begin with."""
    yield from run(CHECKS, context or Context())
