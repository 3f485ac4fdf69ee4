"""Starts the processes in which memory flags are tried: flags are a process's own, and most are decided by its first tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from paddle_ds.devices import flag_table

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the flags that stand in this environment."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FLAGS_", "CUSTOM_DEVICE"))}
    environ |= {"PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2", **variables}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def scenarios(device: str, wanted: list[dict[str, Any]], **variables: str) -> list[dict[str, Any]]:
    """What ``flag_scenarios.py`` prints for each of ``wanted``; ``stderr`` is that of all."""
    done = python(str(Path(__file__).parent / "flag_scenarios.py"), device, json.dumps(wanted), **variables)
    return [{**json.loads(line), "stderr": done.stderr} for line in done.stdout.splitlines()]


def report(result: dict[str, Any], name: str) -> dict[str, Any]:
    """The report of one flag."""
    found: dict[str, Any] = next(report for report in result["reports"] if report["name"] == flag_table.canonical(name))
    return found
