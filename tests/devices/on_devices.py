"""Runs a program in a process of its own that sees the emulated devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulated_device

ROOT = Path(__file__).parents[2]
LIMIT_S = 120


def environ(type_name: str = "npu", more: dict[str, str] | None = None, **options: Any) -> dict[str, str]:
    """The environment of such a process."""
    base = {name: value for name, value in os.environ.items() if not name.startswith(("FLAGS_", "CUSTOM_DEVICE"))}
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "serving", ROOT / "slim", ROOT / "tests"))
    base["PYTHONPATH"] = paths
    return {**base, **emulated_device.environment(type_name, **options), **(more or {})}


def run(program: str, *arguments: str, limit_s: float = LIMIT_S, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python source text; ``options`` are those of :func:`environ`."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environ(**options),
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
    )


def result(program: str, *arguments: str, **options: Any) -> Any:
    """What the program prints on its last line, as JSON."""
    done = run(program, *arguments, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
