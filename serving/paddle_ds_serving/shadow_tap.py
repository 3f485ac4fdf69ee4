"""A worker's part in a shadow comparison: chooses requests, and tells the supervisor how the current engine answered them.

    request ── chosen? ──► engine ──► answer ──► queue ── a thread of its own ──► control socket
                                                   └── full: dropped, and counted

A request never waits for it. See ``supervision/shadow.py`` for what becomes of a report.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from paddle_ds.errors import PaddleDSError
from paddle_ds.logs import fields
from paddle_ds_serving.choice import Choice
from paddle_ds_serving.generation import Order
from paddle_ds_serving.supervision import control
from paddle_ds_serving.supervision.pointer import Pointer
from paddle_ds_serving.supervision.shadow import Answered, Report

_log = logging.getLogger(__name__)

_MAX_WAITING = 32
_SEND_S = 5.0


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A request that is to be compared."""

    #: with a seed, so that another engine can draw the same
    order: Order
    session: str


class ShadowTap:
    """Any number of threads may use it. Its own thread begins with the first report and ends with the process."""

    def __init__(self, directory: Path, pointer: Callable[[], Pointer | None], draw: Callable[[], float] = random.random) -> None:
        """``draw`` gives numbers from 0 up to, and without, 1."""
        self._control = directory / control.FILE_NAME
        self._pointer = pointer
        self._draw = draw
        self._queue: queue.Queue[Report] = queue.Queue(_MAX_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._missed_in = ""
        self._num_missed = 0

    def choose(self, order: Order) -> Chosen | None:
        """Whether this request is compared. It is drawn before anything is known of it, so the choice prefers none."""
        pointer = self._pointer()
        if pointer is None or not pointer.shadow_percent or pointer.next_socket is None:
            return None
        if 100 * self._draw() >= pointer.shadow_percent:
            return None
        params = order.params
        if params.seed is None and params.temperature > 0:
            order = dataclasses.replace(order, params=msgspec.structs.replace(params, seed=secrets.randbits(63)))
        return Chosen(order, pointer.next_socket)

    def report(self, chosen: Chosen, choices: Sequence[Choice]) -> None:
        """Tell how a request was answered; only where the engine ended every answer, and the same comparison still runs."""
        answers = [answer for choice in choices if (answer := _answered(choice)) is not None]
        if len(answers) < len(choices) or not self._runs(chosen.session):
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shadow-tap", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(Report(chosen.session, answers))
        except queue.Full:
            self._miss(chosen.session, 1)

    def _run(self) -> None:
        while True:
            report = self._queue.get()
            if not self._runs(report.session):
                continue
            num_missed = self._take_missed(report.session)
            try:
                whole = msgspec.structs.replace(report, num_missed=num_missed)
                control.ask(self._control, "shadow", timeout_s=_SEND_S, report=whole)
            except PaddleDSError as error:
                self._miss(report.session, num_missed + 1)
                _log.warning("shadow.not_reported", extra=fields(code=error.code))

    def _runs(self, session: str) -> bool:
        pointer = self._pointer()
        return pointer is not None and pointer.shadow_percent > 0 and pointer.next_socket == session

    def _miss(self, session: str, num: int) -> None:
        with self._lock:
            if session != self._missed_in:
                self._missed_in, self._num_missed = session, 0
            self._num_missed += num

    def _take_missed(self, session: str) -> int:
        with self._lock:
            num = self._num_missed if session == self._missed_in else 0
            self._num_missed = 0
            return num


def _answered(choice: Choice) -> Answered | None:
    """``None`` where the engine had no say in the end: a stop string, the content filter, a client that left, a failure."""
    usage = choice.usage
    if usage is None or choice.finish_reason not in ("stop", "length"):
        return None
    submit = choice.submit
    times = usage.first_token_s, usage.total_s
    return Answered(list(submit.prompt_ids), submit.params, list(choice.token_ids), choice.stop_token_id, *times)
