"""The engines as their parent sees them: a process each, of which one at a time computes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .install import Places
from .models import Models
from .shell import cpu_s, end_family, last_line
from .table import LLAMA, OPENVINO, OURS, PEERS
from .worker import Task

SETTINGS = Path(__file__).with_name("settings.json")
#: OpenMP's threads spin for some time after the last region (Intel's for 0.2 s) and would take the core from whoever is next
SETTLE_S = 0.4
_TOOLS = Path(__file__).resolve().parents[1]


class WorkerDied(Exception):
    """A worker ended, or never got ready; the message says what it said last."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one task took on one engine."""

    task: Task
    prefill_s: float
    step_s: list[float]
    peak_rss_bytes: int

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens of all streams a second, until the last stream's first token."""
        return self.task.streams * self.task.prompt_tokens / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        """New tokens of all streams a second, at the median step."""
        ordered = sorted(self.step_s)
        middle = len(ordered) // 2
        median_s = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        return self.task.streams / median_s


class Worker:
    """A loaded engine in its own process."""

    def __init__(self, name: str, command: list[str], environ: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log_path = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )
        try:
            self.about = self._read()
        except BaseException:
            self.close()
            raise
        self._cpu_after_s = cpu_s(self._process.pid)

    def measure(self, task: Task) -> Result:
        """Run one task now.

        Raises:
            WorkerDied: it did not survive that.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(dataclasses.asdict(task)).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._read()
        time.sleep(SETTLE_S)
        self._cpu_after_s = cpu_s(self._process.pid)
        return Result(task, answer["prefill_s"], answer["step_s"], answer["peak_rss_bytes"])

    def idle_cpu_s(self) -> float:
        """Processor time it has taken since it settled after its last task: near 0, or it disturbs the others."""
        return cpu_s(self._process.pid) - self._cpu_after_s

    def cpu_s(self) -> float:
        """Processor time it has taken so far."""
        return cpu_s(self._process.pid)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        end_family(self._process, grace_s=2.0)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
            raise WorkerDied(f"{self.name} ended: {last_line(self._log_path)} (log: {self._log_path})")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Engines:
    """Starts workers on the same weights."""

    def __init__(self, places: Places, models: Models, threads: int) -> None:
        self._places = places
        self._models = models
        self._threads = threads

    def start(self, name: str, settings: Mapping[str, Any], log_name: str = "") -> Worker:
        """A worker of the engine called ``name``.

        Raises:
            WorkerDied: it cannot load.
        """
        models: dict[str, Any] = {
            OURS: str(self._models.w8a8),
            LLAMA: str(self._models.gguf),
            OPENVINO: {kind: str(path) for kind, path in self._models.openvino.items()},
        }
        module = {OURS: "worker_ours", LLAMA: "worker_llama", OPENVINO: "worker_openvino"}[name]
        python = sys.executable if name == OURS else str(self._places.python)
        options = {"model": models[name], "threads": self._threads, "settings": settings}
        environ = {
            "PYTHONPATH": os.pathsep.join([str(_TOOLS)] + ([str(_TOOLS.parent)] if name == OURS else [])),
            "LLAMA_CPP_LIB_PATH": str(self._places.llama_bin),
            "OMP_NUM_THREADS": str(self._threads),
        }
        command = [python, "-m", f"{__package__}.{module}", json.dumps(options)]
        return Worker(name, command, environ, self._places.logs / f"worker-{log_name or name}.log")


def load_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Best settings by engine, as ``--tune`` wrote them; the engines' own defaults where there is no such file.

    Raises:
        ValueError: the file is not of that form, or names an engine that is not known.
    """
    if not path.exists():
        return {name: {} for name in (OURS, *PEERS)}
    stored = json.loads(path.read_text(encoding="utf-8")).get("settings")
    if not isinstance(stored, dict):
        raise ValueError(f'{path}: expected {{"settings": {{engine: {{option: value}}}}}}')
    unknown = sorted(set(stored) - {OURS, *PEERS})
    if unknown:
        raise ValueError(f"{path}: unknown engine {unknown[0]!r}; known: {OURS}, {', '.join(PEERS)}")
    return {name: stored.get(name, {}) for name in (OURS, *PEERS)}
