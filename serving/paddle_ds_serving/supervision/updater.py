"""How a server gets another checkpoint, and its earlier one back.

    verify ─► load beside ─► canary ─► shadow, if asked ─► switch ─► the old engine drains
                  │ memory plan refuses
                  └─► refuse new requests ─► drain ─► end the old engine ─► load ─► canary ─► switch
                                                                              │ refused
                                                                              └─► the old configuration again

Whatever goes wrong before the switch leaves the old engine serving (or, in the second way, brings it back), and is the answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from paddle_ds.checkpoints import manifest
from paddle_ds.checkpoints.listing import find_gguf
from paddle_ds.config.engine import EngineConfig
from paddle_ds.config.model import ModelConfig
from paddle_ds.engine.assets import resolve_model
from paddle_ds.errors import (
    CheckpointError,
    CheckpointNotFound,
    EngineDied,
    EngineUnavailable,
    InvalidRequest,
    ManifestMismatchError,
    MemoryPlanError,
    NothingToRollBack,
    RunDirectoryError,
    UpdateRunning,
    from_info,
)
from paddle_ds.ipc.messages import ModelInfo
from paddle_ds.logs import fields
from paddle_ds_serving.protocol.answers import Updated
from paddle_ds_serving.supervision.canary import Canary, CanaryConfig
from paddle_ds_serving.supervision.fleet import Fleet, Unit
from paddle_ds_serving.supervision.shadow import Report, ShadowPlan, ShadowResult, judge
from paddle_ds_serving.supervision.shadow_replay import Comparison, check_same_tokens, model_of

_log = logging.getLogger(__name__)

_POLL_S = 0.05
#: earlier checkpoints that can be gone back to
_MAX_HISTORY = 8


@dataclasses.dataclass(frozen=True)
class Place:
    """A checkpoint that was served: how, and which version it was."""

    config: EngineConfig
    version: str

    @property
    def path(self) -> str:
        return resolve_model(self.config)


class Updater:
    """Carries out one update at a time, on the thread that asks for it."""

    def __init__(self, fleet: Fleet, canary: CanaryConfig, drain_s: float, stopping: Callable[[], bool] = lambda: False) -> None:
        self._fleet = fleet
        self._canary = canary
        self._drain_s = drain_s
        self._stopping = stopping
        self._lock = threading.Lock()
        self.history: list[Place] = []
        #: what an update that runs is doing
        self.stage = ""
        self.last_error = ""
        self.switched_s: float | None = None
        #: of live traffic, while it runs
        self.comparison: Comparison | None = None

    @property
    def running(self) -> bool:
        return self._lock.locked()

    def load(self, path: str, *, may_drain: bool = True, shadow: ShadowPlan | None = None) -> Updated:
        """Serve the checkpoint at ``path`` instead of the current one; with ``shadow``, after it was compared with that.

        Raises:
            UpdateRunning: another update is under way.
            PaddleDSError: the checkpoint is refused, with the reason.
        """
        with self._alone():
            # a link may lead elsewhere tomorrow; the way back must lead to what is there today
            resolved = str(_find(path).resolve())
            current = self._fleet.current
            info = current.client.info
            name = current.config.served_name or (info.model.name if info and info.model else "")
            config = dataclasses.replace(current.config, model=resolved, served_name=name)
            before = self._place(current)
            done = self._change(config, "", may_drain, shadow)
            self.history = [*self.history, before][-_MAX_HISTORY:]
            return done

    def reconfigure(self, config: EngineConfig, *, keep_model: bool) -> Updated:
        """Serve with another configuration; with ``keep_model`` the checkpoint that is served now, whatever ``config`` names.

        Raises:
            UpdateRunning, PaddleDSError: as :meth:`load`.
        """
        with self._alone():
            current = self._fleet.current
            if keep_model:
                config = dataclasses.replace(config, model=current.config.model, served_name=current.config.served_name)
            before = self._place(current)
            done = self._change(config, "", may_drain=True)
            self.history = [*self.history, before][-_MAX_HISTORY:]
            return done

    def roll_back(self, *, may_drain: bool = True) -> Updated:
        """Serve the checkpoint that was served before.

        Raises:
            NothingToRollBack: there was no other.
            UpdateRunning, PaddleDSError: as :meth:`load`.
        """
        with self._alone():
            if not self.history:
                raise NothingToRollBack("no earlier checkpoint is known: this server has served only one")
            place = self.history[-1]
            done = self._change(place.config, place.version, may_drain)
            self.history = self.history[:-1]
            self.switched_s = None  # the one that was left is not gone back to by itself
            return done

    def _place(self, unit: Unit) -> Place:
        model = str(Path(resolve_model(unit.config)).expanduser().resolve())
        known = Path(model).exists()
        return Place(dataclasses.replace(unit.config, model=model) if known else unit.config, unit.version)

    def report(self, report: Report) -> None:
        """Take what an HTTP worker tells of the current engine; nothing where no comparison runs any more."""
        comparison = self.comparison
        if comparison is not None:
            comparison.offer(report)

    def _change(self, config: EngineConfig, expected_version: str, may_drain: bool, shadow: ShadowPlan | None = None) -> Updated:
        started_s = time.monotonic()
        previous = self._fleet.current.version
        path = Path(resolve_model(config))
        if expected_version and path.exists() and manifest.weight_version(path) != expected_version:
            raise ManifestMismatchError(f"{path}: is not what was served from there before ({expected_version})")
        self.stage = "verifying"
        if path.is_dir() and find_gguf(path) is None:
            ModelConfig.from_dir(path)  # an engine would say the same, seconds later
        verified = path.is_dir() and manifest.verify(path)
        mode: Literal["beside", "after_drain"] = "beside"
        try:
            compared = self._bring_up(config, shadow)
        except MemoryPlanError as error:
            if shadow is not None:
                raise MemoryPlanError(
                    f"a shadow comparison needs memory for two engines, and there is none: {error.message}", param="shadow"
                ) from error
            if not may_drain:
                raise
            compared = None
            mode = "after_drain"
            _log.warning("update.drains", extra=fields(because=error.message))
            self._change_after_drain(config)
        unit = self._fleet.current
        self.switched_s = time.monotonic()
        seconds = round(time.monotonic() - started_s, 3)
        return Updated(str(path), unit.version, previous, verified, mode, seconds, compared)

    def _bring_up(self, config: EngineConfig, shadow: ShadowPlan | None = None) -> ShadowResult | None:
        """Start an engine, let it sing, compare it if that is asked for, and switch to it; or end it."""
        unit = self._fleet.join(config)
        try:
            self.stage = "loading"
            self._wait(lambda: _is_loaded(unit))
            info = unit.client.info
            assert info is not None, "it is ready"
            assert info.model is not None
            self.stage = "canary"
            Canary.of(self._canary, info.model).sing(unit.client)
            compared = None if shadow is None else self._compare(unit, info.model, shadow)
            self._fleet.switch()
        except BaseException:
            self._fleet.drop()
            self._wait(lambda: unit.child.ended)  # and with it the memory that another attempt may need
            raise
        return compared

    def _compare(self, unit: Unit, model: ModelInfo, plan: ShadowPlan) -> ShadowResult:
        """Have live requests answered a second time by the engine that joins. Raises where it is not to be switched to."""
        check_same_tokens(model_of(self._fleet.current.client), model)
        self.comparison = comparison = Comparison(plan, unit.socket, unit.client)
        self.stage = "shadowing"
        try:
            self._fleet.shadow(plan.percent)
            self._wait(lambda: comparison.done or not _is_alive(unit))
        finally:
            self._fleet.shadow(0.0)
            comparison.close()
            self.comparison = None
        if not _is_alive(unit):
            raise EngineDied(f"the engine died while its answers were compared (exit status {unit.child.last_status})")
        result = comparison.result()
        _log.info("update.shadowed", extra=fields(**msgspec.to_builtins(result)))
        judge(plan, result)
        return result

    def _change_after_drain(self, config: EngineConfig) -> None:
        self._fleet.refuse("the server is changing its model and has no memory for two; try again in a moment")
        try:
            self.stage = "draining"
            old = self._fleet.current
            old.drain(self._drain_s)
            self._wait(lambda: old.drained() and not self._fleet.draining)
            self._fleet.stop_current()
            self._wait(lambda: old.child.ended)
            try:
                self._bring_up(config)
            except BaseException:
                self._insist(self._fleet.start_current)
                self._wait(lambda: self._fleet.current.ready)
                raise
        finally:
            self._insist(lambda: self._fleet.refuse(""))

    def _insist(self, act: Callable[[], None]) -> None:
        """Until there is room for it in the run directory: what is left undone here would be an outage."""
        while not self._stopping():
            try:
                return act()
            except RunDirectoryError as error:
                if self.stage != error.message:
                    _log.error("update.waits", extra=fields(reason=error.message))
                self.stage = error.message
            time.sleep(_POLL_S)

    def _wait(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._stopping():
                raise EngineUnavailable("the server is shutting down")
            time.sleep(_POLL_S)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise UpdateRunning(f"another update is under way ({self.stage or 'starting'}); try again when it is done")
        self.last_error = ""
        try:
            yield
        except Exception as error:
            self.last_error = str(error)
            _log.error("update.refused", extra=fields(stage=self.stage, reason=str(error)))
            raise
        finally:
            self.stage = ""
            self._lock.release()


def _is_alive(unit: Unit) -> bool:
    return not unit.child.num_deaths and not unit.child.ending


def _find(path: str) -> Path:
    """The directory or file that was asked for. A pipe or a device is neither: reading it might never end."""
    try:
        place = Path(path).expanduser()
        found = place.is_dir() or place.is_file()
    except (RuntimeError, ValueError, OSError) as error:  # no such user, a null character, too long
        raise InvalidRequest(f"path: {error}", param="path") from error
    if not found:
        raise CheckpointNotFound(f"{path}: no such directory or file; a hub name or URL has to be fetched first")
    return place


def _is_loaded(unit: Unit) -> bool:
    """Raises what an engine that joins has failed with."""
    info = unit.client.info
    if unit.child.num_deaths:
        raise EngineDied(f"the engine died while it loaded the checkpoint (exit status {unit.child.last_status})")
    if info is not None and info.state == "failed" and info.error is not None:
        raise from_info(info.error)
    if unit.child.ending:
        raise CheckpointError("the update was given up")
    return unit.ready
