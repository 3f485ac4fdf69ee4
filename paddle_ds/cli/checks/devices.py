"""Everything that needs Paddle, asked in a process of its own: a plug-in that aborts or hangs must not end the doctor.

That process writes a finding a line, so what it had found before it died is kept. ``in_paddle.py`` is its program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from paddle_ds.cli.checks import pins
from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding

_TOPIC = "devices"
#: Paddle is loaded once, and once more for each plug-in library; operators may be built
_LIMIT_S = 240.0
#: for a killed process to be gone
_KILL_WAIT_S = 5.0


def check(context: Context, limit_s: float = _LIMIT_S) -> Iterator[Finding]:
    """Relay what the other process finds, and say how it ended where it did not end well.

    Args:
        limit_s: it is killed after so long.
    """
    if not any(context.version(name) for name in pins.PADDLE_BUILDS):
        return  # the check of versions has told
    context.settings()  # with a wrong variable there is nothing to ask in the other process
    command = [sys.executable, "-m", "paddle_ds.cli.checks.in_paddle", json.dumps(dataclasses.asdict(context.asked))]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+", errors="replace") as complaint:
        status = _run(command, output, complaint, limit_s)
        for line in _lines(output):
            yield Finding(**json.loads(line))
        last = ([line.strip() for line in _lines(complaint) if line.strip()] or [""])[-1][:300]
    if status is None:
        text = f"looking at Paddle's devices takes more than {limit_s:g} s: one of them, or its plug-in, does not answer"
        yield Finding("paddle_hangs", _TOPIC, "error", text, _without_plugins())
    elif status:
        how = f"signal {-status} ({_signal_name(-status)})" if status < 0 else f"status {status}"
        text = f"loading Paddle and looking at its devices ended with {how}" + (f": {last}" if last else "")
        yield Finding("paddle_crashed", _TOPIC, "error", text, _without_plugins())


def _run(command: list[str], output: IO[str], complaint: IO[str], limit_s: float) -> int | None:
    """Its status; ``None`` where it was killed for taking too long. It writes to files: who holds a pipe could hold us, too."""
    process = subprocess.Popen(
        command, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=complaint, start_new_session=True
    )
    try:
        return process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may wait in the kernel, for a driver that does not answer
            process.wait(timeout=_KILL_WAIT_S)


def _lines(file: IO[str]) -> list[str]:
    """Whole lines; the last one may have been cut off."""
    file.seek(0)
    return [line for line in file.read().splitlines(keepends=True) if line.endswith("\n")]


def _environment() -> dict[str, str]:
    """Modules are looked for where this process looks for them, and nowhere else."""
    root = str(Path(__file__).resolve().parents[3])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)]), "PYTHONSAFEPATH": "1"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _without_plugins() -> str:
    given = os.environ.get("CUSTOM_DEVICE_ROOT")
    if given:
        return (
            f"look at the plug-ins in CUSTOM_DEVICE_ROOT ({given}) and what is said of them above; unset it to run without them"
        )
    return "look at the plug-ins above, where there are any; install Paddle anew where there are none"
