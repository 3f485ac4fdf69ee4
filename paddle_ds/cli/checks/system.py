"""The program itself, Python, and the variables of the environment that are the project's own."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator

from paddle_ds import __version__, settings
from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding
from paddle_ds.errors import PaddleDSError

#: first and last that the lock covers
_PYTHONS = ((3, 10), (3, 12))


def program(context: Context) -> Iterator[Finding]:
    """What runs this."""
    yield Finding("program", "paddle-ds", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    major, minor, _ = platform.python_version_tuple()
    if not _PYTHONS[0] <= (int(major), int(minor)) <= _PYTHONS[1]:
        yield Finding("python_untested", "python", "warning", "tested with 3.11; the lock covers 3.10 to 3.12", "use Python 3.11")
    if context.version("pip") is None:
        text = f"{sys.executable} has no pip, so the commands below will not be found"
        fix = f"{sys.executable} -m ensurepip (where that is missing, too: apt-get install python3-venv)"
        yield Finding("pip_missing", "python", "warning", text, fix)


def environment(context: Context) -> Iterator[Finding]:
    """Variables ``PADDLE_DS_*`` that are unknown or have a wrong value."""
    try:
        settings.load()
    except PaddleDSError as error:
        yield Finding("variable_wrong", "environment", "error", error.message, "correct or unset the variable")


def before_paddle(context: Context) -> Iterator[Finding]:
    """What is set for a process that loads Paddle."""
    from paddle_ds.devices import environment

    current = context.settings()
    device = context.asked.device or "cpu"
    for name, value in environment.variables(current.num_threads, device, current.device_profiles).items():
        yield Finding("variable_set", "environment", "ok", f"{name}={value} is set before Paddle is loaded")
