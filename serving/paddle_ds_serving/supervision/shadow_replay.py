"""Asks an engine that joins what the current one has answered already."""

from __future__ import annotations

import json
import logging
import queue
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from paddle_ds.errors import EngineUnavailable, PaddleDSError, ShadowMismatchError, TokenizerError
from paddle_ds.ipc.messages import Delta, Failed, Finished, ModelInfo, Submit
from paddle_ds.logs import fields
from paddle_ds_serving.engine import EngineClient
from paddle_ds_serving.supervision.shadow import Replayed, Report, ShadowPlan, ShadowResult, Tally

_log = logging.getLogger(__name__)

#: requests that the new engine has at a time: it shares the cores with the one that serves
_MAX_AT_ONCE = 4
#: reports that wait for it; further ones are missed
_MAX_WAITING = 16
_POLL_S = 0.1
#: a request that ends so tells nothing of the model: the engine is gone or busy, and others see to that
_NOT_COMPARABLE = {"engine_died", "engine_unavailable", "server_overloaded"}


class _NotComparable(Exception):
    """There is no answer of the new engine, and that is not the model's fault."""


class Comparison:
    """Replays what is offered, until enough was compared or the time is over. Any thread may offer and ask.

    Attributes:
        session: what a report has to name to be meant for this comparison.
    """

    def __init__(self, plan: ShadowPlan, session: str, engine: EngineClient) -> None:
        self.session = session
        self._plan = plan
        self._engine = engine
        self._end_s = time.monotonic() + plan.limit_s
        self._lock = threading.Lock()
        self._tally = Tally(plan)
        self._num_taken = 0
        self._waiting: queue.Queue[Report] = queue.Queue(_MAX_WAITING)
        self._over = threading.Event()
        for index in range(_MAX_AT_ONCE):
            threading.Thread(target=self._run, name=f"shadow-replay-{index}", daemon=True).start()

    def offer(self, report: Report) -> None:
        """Compare this one, if it is of this session, still needed, and not too much at a time."""
        if report.session != self.session or self._over.is_set():
            return
        with self._lock:
            self._tally.num_missed += report.num_missed
            if self._num_taken >= self._plan.num_requests:
                return  # those that are taken are waited for: the first to be ready are the short ones
            try:
                self._waiting.put_nowait(report)
                self._num_taken += 1
            except queue.Full:
                self._tally.num_missed += 1

    @property
    def done(self) -> bool:
        """Enough was compared, or the time is over."""
        with self._lock:
            return self._tally.num_compared >= self._plan.num_requests or time.monotonic() >= self._end_s

    def result(self) -> ShadowResult:
        """The figures so far."""
        with self._lock:
            return self._tally.result()

    def close(self) -> None:
        """Take no more, and abort what runs."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                report = self._waiting.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            try:
                replayed = self._replay(report)
            except _NotComparable:
                with self._lock:
                    self._num_taken -= 1
                    self._tally.num_missed += 1
                continue
            with self._lock:
                if not self._over.is_set():
                    self._tally.add(report.answers, replayed)

    def _replay(self, report: Report) -> list[Replayed] | None:
        """All answers of one request, in their order; ``None`` where the engine fails with one of them."""
        name = f"shadow-{secrets.token_hex(8)}"
        submits = [Submit(f"{name}-{i}", answer.prompt_ids, answer.params) for i, answer in enumerate(report.answers)]
        try:
            stream = self._engine.submit(submits)
        except PaddleDSError as error:
            raise _NotComparable from error
        tokens: dict[str, list[int]] = {submit.request_id: [] for submit in submits}
        ends: dict[str, Finished] = {}
        while len(ends) < len(submits):
            if self._over.is_set():
                stream.abort()
                raise _NotComparable
            event = stream.get(_POLL_S)
            if isinstance(event, Delta):
                tokens[event.request_id] += event.token_ids
            elif isinstance(event, Finished) and event.reason != "abort":
                ends[event.request_id] = event
            elif event is not None:
                stream.abort()
                _check_comparable(event)
                return None
        return [_replayed(tokens[submit.request_id], ends[submit.request_id]) for submit in submits]


def _replayed(token_ids: list[int], end: Finished) -> Replayed:
    tokens = token_ids if end.stop_token_id is None else [*token_ids, end.stop_token_id]
    return Replayed(tokens, end.usage.first_token_s, end.usage.total_s)


def _check_comparable(event: Failed | Finished) -> None:
    """Raise :class:`_NotComparable` unless the model is what failed."""
    if isinstance(event, Finished) or event.error.code in _NOT_COMPARABLE:
        raise _NotComparable
    _log.warning("shadow.failed", extra=fields(code=event.error.code))  # a message may quote the request


def check_same_tokens(old: ModelInfo, new: ModelInfo) -> None:
    """See that token ids mean the same to both models: prompts are replayed as ids.

    Raises:
        ShadowMismatchError: they do not.
        TokenizerError: a tokenizer's file cannot be read.
    """
    if _token_ids(Path(old.directory)) != _token_ids(Path(new.directory)):
        raise ShadowMismatchError(
            "this checkpoint has another vocabulary than the current one, so that their tokens cannot be compared; "
            "update without a shadow comparison"
        )


def _token_ids(directory: Path) -> tuple[Any, dict[int, str]]:
    """Vocabulary and added tokens as they are in ``tokenizer.json``, whatever its layout."""
    path = directory / "tokenizer.json"
    try:
        raw = json.loads(path.read_bytes())
        return raw["model"]["vocab"], {token["id"]: token["content"] for token in raw.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error!r}") from error


def model_of(engine: EngineClient) -> ModelInfo:
    """The model of an engine that serves.

    Raises:
        EngineUnavailable: it has not said which; there is nothing to compare with.
    """
    info = engine.info
    if info is None or info.model is None:
        raise EngineUnavailable("the current engine has no model to compare with")
    return info.model
