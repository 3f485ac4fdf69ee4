"""The engine's part in the bench: a script in place of a model, and a journal of what happened to each request.

A step is due every ``1 / IPC_BENCH_STEPS_PER_S`` seconds, on a grid that all processes share. A request pays one step for
each prompt id, then gets one small frame a step: the time of the step, where a token id would be.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PERIOD_NS = int(1e9 / float(os.environ.get("IPC_BENCH_STEPS_PER_S", "25")))
#: how long loading takes, and whether it fails
LOAD_S = float(os.environ.get("IPC_BENCH_LOAD_S", "0"))
LOAD_FAILS = os.environ.get("IPC_BENCH_LOAD_FAILS") == "1"


def note(what: str, **fields: Any) -> None:
    """One line in the journal; lines this short are appended whole."""
    line = json.dumps({"what": what, "at_ns": time.monotonic_ns(), "pid": os.getpid(), **fields}) + "\n"
    descriptor = os.open(os.environ["IPC_BENCH_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def load() -> None:
    """What loading a model is here."""
    note("boot")
    time.sleep(LOAD_S)
    if LOAD_FAILS:
        raise RuntimeError("the checkpoint cannot be loaded")
    note("ready")


def wait_for_step() -> None:
    """Sleep until the next point of the grid."""
    now_ns = time.monotonic_ns()
    time.sleep((PERIOD_NS - now_ns % PERIOD_NS) / 1e9)


@dataclass(frozen=True)
class Frame:
    """What one step has for one request."""

    request_id: str
    owner: str
    stamp_ns: int
    is_last: bool


@dataclass
class _Running:
    owner: str
    num_prompt_left: int
    num_left: int
    num_made: int = 0


class Script:
    """All requests that run. Not thread-safe."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def add(self, request_id: str, owner: str, num_prompt: int, num_frames: int) -> None:
        """Start a request."""
        self._running[request_id] = _Running(owner, num_prompt, num_frames)

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests early; unknown ones are over already."""
        for request_id in request_ids:
            self._end(request_id, "abort")

    def abort_owner(self, owner: str) -> None:
        """End all requests of one HTTP worker."""
        self.abort([request_id for request_id, running in self._running.items() if running.owner == owner])

    def step(self) -> list[Frame]:
        """One frame for each request that has its prompt behind it."""
        stamp_ns, frames = time.monotonic_ns(), []
        for request_id, running in list(self._running.items()):
            if running.num_prompt_left:
                running.num_prompt_left -= 1
                continue
            running.num_left -= 1
            running.num_made += 1
            frames.append(Frame(request_id, running.owner, stamp_ns, running.num_left == 0))
            if running.num_left == 0:
                self._end(request_id, "length")
        return frames

    def _end(self, request_id: str, reason: str) -> None:
        running = self._running.pop(request_id, None)
        if running is not None:
            note("end", request_id=request_id, reason=reason, num_frames=running.num_made)


class ScriptThread:
    """A script that steps in a thread of its own, as a model must inside a dirty worker: its event loop may not wait."""

    def __init__(self, deliver: Callable[[list[Frame]], None]) -> None:
        self._script = Script()
        self._deliver = deliver
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="script", daemon=True).start()

    def add(self, request_id: str, owner: str, num_prompt: int, num_frames: int) -> None:
        """Start a request."""
        with self._changed:
            self._script.add(request_id, owner, num_prompt, num_frames)
            self._changed.notify()

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests early."""
        with self._changed:
            self._script.abort(request_ids)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._script.has_work)
            wait_for_step()
            with self._changed:
                frames = self._script.step()
            self._deliver(frames)
