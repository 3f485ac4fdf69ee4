"""What a chip's own tool (``npu-smi``, ``cnmon``, ``nvidia-smi`` …) tells about a device, as figures. No paddle here.

How a tool is called and read stands in the profile (:class:`paddle_ds.devices.profile.Monitor`). Nothing here raises: a server
that cannot be watched still serves. Why there are no figures is logged once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from paddle_ds.devices.profile import DeviceProfile, Monitor, physical_index
from paddle_ds.errors import DeviceError
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

#: (profile, kind of reason) that were logged
_told: set[tuple[str, str]] = set()
#: profile -> its tool, which could not even be killed (a hung driver does that); it is not started again
_stuck: dict[str, subprocess.Popen[str]] = {}
#: for a killed tool to be gone
_KILL_WAIT_S = 1.0


def read_monitor(
    profile: DeviceProfile, index: int, timeout_s: float = 5.0, environ: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Figures of one device, such as ``memory_used_bytes``; empty where there are none. Starts a process: not for the step loop.

    Args:
        index: among the devices that a process with the environment ``environ`` (``None``: this one) sees. The tools count all
            devices of the machine, whatever is visible.
        timeout_s: the tool is killed after this long.
    """
    if profile.monitor is None or profile.name in _stuck:
        return {}
    try:
        number = physical_index(profile, index, os.environ if environ is None else environ)
    except DeviceError as error:
        return _tell(profile, error.message)
    if number is None:
        return _tell(profile, f"it cannot be told which of the machine's devices {profile.type}:{index} is")
    text, reason = _run(profile, profile.monitor, timeout_s)
    if reason:
        return _tell(profile, reason)
    records = parse(profile.monitor, text)
    if number not in records:
        tool = profile.monitor.command[0]
        known = ", ".join(map(str, sorted(records)))
        return _tell(
            profile, f"{tool} names device {known}, not {number}" if records else f"{tool} has another layout than known"
        )
    return records[number]


def parse(monitor: Monitor, text: str) -> dict[int, dict[str, float]]:
    """The tool's number of each device -> its figures, in the units of their names. What is absent, or no number, is left out."""
    records = _json_records(monitor, text) if monitor.format == "json" else _text_records(monitor, text)
    found: dict[int, dict[str, float]] = {}
    for index, record in records.items():
        figures: dict[str, float] = {}
        for metric in monitor.metrics:
            value = _number(record.get(metric.read) if isinstance(record, Mapping) else _group(metric.read, record))
            if value is not None and metric.name not in figures:
                figures[metric.name] = value * metric.factor
        found[index] = figures
    return found


def _text_records(monitor: Monitor, text: str) -> dict[int, str]:
    text = text.replace("\r\n", "\n")
    matches = re.finditer(monitor.record, text, re.MULTILINE)
    return {int(match["index"]): match[0] for match in matches if _is_index(match["index"])}


def _json_records(monitor: Monitor, text: str) -> dict[int, Mapping[str, Any]]:
    # warnings may stand before the object
    start = text.find("{")
    try:
        outermost = json.loads(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return {}
    found: dict[int, Mapping[str, Any]] = {}
    for key, record in outermost.items() if isinstance(outermost, dict) else ():
        match = re.fullmatch(monitor.record, key)
        if match is not None and _is_index(match["index"]) and isinstance(record, dict):
            found[int(match["index"])] = record
    return found


def _is_index(text: str | None) -> bool:
    return text is not None and text.isdecimal()


def _group(expression: str, record: str) -> str | None:
    match = re.search(expression, record, re.MULTILINE)
    return match[1] if match else None


def _number(value: Any) -> float | None:
    """``None`` for what is no finite number: ``N/A``, an absent key, a flag."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _run(profile: DeviceProfile, monitor: Monitor, timeout_s: float) -> tuple[str, str]:
    """Output and an empty reason, or a reason why there is none."""
    names = (monitor.command[0], *monitor.alternatives)
    program = next((path for path in map(shutil.which, names) if path), None)
    if program is None:
        return "", f"there is no {' or '.join(names)}"
    try:
        # a session of its own, so that all it starts can be killed with it
        process = subprocess.Popen(
            [program, *monitor.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return "", f"{program} cannot be started: {error.strerror}"
    try:
        output, complaint = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill(profile, process)
        return "", f"{program} did not answer within {timeout_s:g} s"
    if process.returncode:
        lines = (complaint.strip() or output.strip()).splitlines()
        return "", f"{program} ended with status {process.returncode}{': ' + lines[-1][:200] if lines else ''}"
    return output, ""


def _kill(profile: DeviceProfile, process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.communicate(timeout=_KILL_WAIT_S)
    except subprocess.TimeoutExpired:  # it waits in the kernel, for a driver that does not answer
        _stuck[profile.name] = process


def _tell(profile: DeviceProfile, reason: str) -> dict[str, float]:
    kind = reason.partition(":")[0]  # the rest is the tool's words, which may differ each time
    if (profile.name, kind) not in _told:
        _told.add((profile.name, kind))
        logger.warning("monitor.silent", extra=fields(device=profile.type, because=reason))
    return {}
