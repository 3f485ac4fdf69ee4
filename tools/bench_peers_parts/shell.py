"""Processes: steps of an installation with a log each, and families that end together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


class StepFailed(Exception):
    """A step of the preparation ended badly; the message says which and why."""


def run_step(name: str, command: Sequence[str | Path], logs: Path, environ: Mapping[str, str] | None = None) -> None:
    """Run a command at low priority with its output in ``logs``/``name``.log.

    Raises:
        StepFailed: it cannot be started or its status is not 0.
    """
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{name}.log"
    print(f"  {name} (log: {path})", flush=True)
    with path.open("wb") as log:
        try:
            process = subprocess.Popen(
                ["nice", "-n", "19", *map(str, command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise StepFailed(f"{name}: {error}") from error
        try:
            status = process.wait()
        except BaseException:
            end_family(process, grace_s=0)
            raise
    if status != 0:
        raise StepFailed(f"{name} ended with status {status}: {last_line(path)} (log: {path})")


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def end_family(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask a process to end, wait, then kill it and everything it started."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_s)
        process.kill()
        process.wait()
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=5)


def cpu_s(pid: int) -> float:
    """Processor time of a process and what it started."""
    total_s = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for member in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                total_s += times.user + times.system
    return total_s


def machine_cpu_s() -> float:
    """Processor time that anybody on this machine has taken, and that its host has kept from it."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def free_port() -> int:
    """A port of this machine nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
