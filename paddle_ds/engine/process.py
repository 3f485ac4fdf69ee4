"""The engine process: ``python -m paddle_ds.engine.process --socket PATH --config FILE``.

    start ─► bind socket, say "loading" ─► load ─► "ready" ─► inbox ─► step ─► frames ─► … ─► SIGTERM ─► "stopping" ─► exit 0

A checkpoint that cannot be loaded is an answer, not a crash: the reason stays readable on the socket until the process is told to
end, because starting again would not help.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from paddle_ds import logs, settings
from paddle_ds.checkpoints.manifest import weight_version
from paddle_ds.config.engine import EngineConfig, from_mapping
from paddle_ds.devices import environment
from paddle_ds.devices.flags import before_paddle
from paddle_ds.engine.announcer import Announcer
from paddle_ds.engine.assets import known_version
from paddle_ds.engine.core import Engine, Failure, Progress
from paddle_ds.engine.device_metrics import DeviceMetrics
from paddle_ds.errors import DeviceLost, EngineUnavailable, InternalError, PaddleDSError
from paddle_ds.ipc import messages
from paddle_ds.ipc.parent import end_with_parent
from paddle_ds.ipc.server import EngineServer, FromWorker, WorkerGone
from paddle_ds.logs import fields
from paddle_ds.sched import NewToken, Request, RequestEnd

if TYPE_CHECKING:
    from paddle_ds.devices.base import Device

logger = logging.getLogger(__name__)

_STATS_EVERY_S = 1.0
#: how long an idle loop sleeps before it looks at the clock again
_IDLE_S = 0.25


class Stop(Protocol):
    """Whether the loop is to end."""

    def is_set(self) -> bool: ...


class EngineLoop:
    """Moves requests from the socket into the engine and tokens back out."""

    def __init__(
        self,
        server: EngineServer,
        engine: Engine,
        stop: Stop,
        fallback_ops: dict[str, int] | None = None,
        device: Device | None = None,
    ) -> None:
        self._server = server
        self._engine = engine
        self._stop = stop
        self._owners: dict[str, bytes] = {}
        self._next_stats_s = 0.0
        self._process = psutil.Process()
        self._fallback_ops = fallback_ops or {}
        self._device_metrics = DeviceMetrics(device) if device is not None and device.type != "cpu" else None
        #: requests that failed one after another, now and at most
        self._failure_run = self._failure_run_max = 0

    def run(self) -> None:
        """Until ``stop`` is set or the device is lost; what still runs then fails with a reason."""
        while not self._stop.is_set() and self._engine.lost is None:
            self._take_messages(wait_s=0 if self._engine.has_work else _IDLE_S)
            if self._engine.has_work:
                self._publish(self._engine.step())
            self._publish_stats()
        self._fail_rest()

    def _take_messages(self, wait_s: float) -> None:
        received = self._server.receive(wait_s)
        while received is not None:
            self._handle(received)
            received = self._server.receive(0)

    def _handle(self, received: FromWorker | WorkerGone) -> None:
        if isinstance(received, WorkerGone):
            theirs = [request_id for request_id, owner in self._owners.items() if owner == received.client]
            self._publish(Progress(ended=self._engine.abort(theirs)))
        elif isinstance(received.message, messages.Abort):
            self._publish(Progress(ended=self._engine.abort(received.message.request_ids)))
        else:
            self._submit(received.client, received.message)

    def _submit(self, client: bytes, submit: messages.Submit) -> None:
        if submit.request_id in self._owners:
            error = InternalError(f"request id {submit.request_id} is in use").info()
            self._server.send(client, messages.Step(failed=[messages.Failed(submit.request_id, error)]))
            return
        try:
            self._engine.add(submit.request_id, submit.prompt_ids, submit.params)
        except PaddleDSError as error:
            self._server.send(client, messages.Step(failed=[messages.Failed(submit.request_id, error.info())]))
        else:
            self._owners[submit.request_id] = client

    def _publish(self, progress: Progress) -> None:
        """One frame for each worker that has something in this step."""
        frames: dict[bytes, messages.Step] = collections.defaultdict(messages.Step)
        for token in progress.tokens:
            frames[self._owners[token.request.request_id]].deltas.append(_delta(token))
        for end in progress.ended:
            client = self._owners.pop(end.request.request_id, None)
            if client is not None:
                frames[client].finished.append(_finished(end))
        for failure in progress.failed:
            client = self._owners.pop(failure.request.request_id, None)
            if client is not None:
                frames[client].failed.append(_failed(failure))
        for client, frame in frames.items():
            self._server.send(client, frame)
        if any(end.reason != "abort" for end in progress.ended):
            self._failure_run = 0
        self._failure_run += len(progress.failed)
        self._failure_run_max = max(self._failure_run_max, self._failure_run)

    def _publish_stats(self) -> None:
        now = time.monotonic()
        if now < self._next_stats_s:
            return
        self._next_stats_s = now + _STATS_EVERY_S
        scheduler, counters = self._engine.scheduler, self._engine.counters
        self._server.broadcast(
            messages.Stats(
                num_running=len(scheduler.running),
                num_waiting=len(scheduler.waiting),
                num_blocks=scheduler.pool.num_blocks,
                num_free_blocks=scheduler.pool.num_free_blocks,
                rss_bytes=self._process.memory_info().rss,
                prompt_tokens_total=counters.prompt_tokens,
                generation_tokens_total=counters.generation_tokens,
                steps_total=counters.steps,
                preemptions_total=scheduler.num_preemptions,
                bad_frames_total=self._server.num_bad_frames,
                fallback_ops=self._fallback_ops,
                shrunk_steps_total=counters.shrunk_steps,
                step_token_limit=scheduler.max_batch_tokens,
                device_metrics=dict(self._device_metrics.latest) if self._device_metrics else {},
                failure_run_max=self._failure_run_max,
            )
        )

    def _fail_rest(self) -> None:
        error = self._engine.lost or EngineUnavailable("the engine is stopping")
        ends = self._engine.abort(list(self._owners))
        self._publish(Progress(failed=[Failure(end.request, error) for end in ends]))


def _delta(token: NewToken) -> messages.Delta:
    sampled = token.sampled
    if sampled.logprob is None:
        return messages.Delta(token.request.request_id, [sampled.token_id])
    logprob = messages.TokenLogprob(sampled.token_id, sampled.logprob, list(sampled.top))
    return messages.Delta(token.request.request_id, [sampled.token_id], [logprob])


def _finished(end: RequestEnd) -> messages.Finished:
    return messages.Finished(end.request.request_id, end.reason, usage_of(end.request), end.stop_token_id)


def _failed(failure: Failure) -> messages.Failed:
    return messages.Failed(failure.request.request_id, failure.error.info())


def usage_of(request: Request) -> messages.Usage:
    """What a request that is over has cost."""
    now = time.monotonic()
    return messages.Usage(
        num_prompt_tokens=request.num_prompt_tokens,
        num_output_tokens=request.num_output_tokens,
        num_cached_tokens=request.num_cached_tokens,
        queue_s=(request.scheduled_s or now) - request.arrival_s,
        first_token_s=(request.first_token_s or now) - request.arrival_s,
        total_s=now - request.arrival_s,
    )


class StopFlag:
    """Asked for by a signal. Not an ``Event``: its lock could be held by the very code that a second signal interrupts."""

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        self._asked = True

    def is_set(self) -> bool:
        return self._asked


def _take_signals(stop: StopFlag) -> None:
    signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what an interrupt means


def serve(socket_path: Path, config: EngineConfig, current: settings.Settings) -> int:
    """Run the process until it is told to stop. Returns the exit status."""
    stop = StopFlag()
    _take_signals(stop)
    announcer = Announcer(socket_path)
    try:
        # seconds of work, done after the socket has begun to answer
        environment.import_paddle(keep_signal_handlers=False)
        _take_signals(stop)
        from paddle_ds.engine.build import load

        version = known_version(config)  # before loading: it names what was there when reading began
        loaded = load(config, current, announcer.progress)
    except Exception as error:
        known = error if isinstance(error, PaddleDSError) else InternalError(f"loading failed: {error!r}")
        logger.error("model.failed", extra=fields(code=known.code, reason=known.message), exc_info=known is not error)
        announcer.failed(known)
        if isinstance(known, DeviceLost):
            return _leave(announcer)  # another start may find the device again
        while not stop.is_set():
            time.sleep(_IDLE_S)
        announcer.server.close()
        return 1
    announcer.ready(loaded, version or weight_version(loaded.directory))
    fallbacks = {f"{op}@{config.device}": 1 for op in loaded.fallbacks}
    EngineLoop(announcer.server, loaded.engine, stop, fallbacks, loaded.device).run()
    if loaded.engine.lost is not None:
        announcer.failed(loaded.engine.lost)
        return _leave(announcer)
    announcer.stopping()
    announcer.server.close()
    return 0


def _leave(announcer: Announcer) -> int:
    """End at once: Python's own way out would wait for a device that does not answer."""
    announcer.server.close()
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="paddle-ds-engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--socket", type=Path, required=True, help="path of the socket to bind")
    parser.add_argument("--config", type=Path, required=True, help="JSON file with an EngineConfig")
    options = parser.parse_args(arguments)
    current = settings.load()
    logs.configure(current.log_level, current.log_format)
    end_with_parent(parent=current.supervisor_pid)
    config: EngineConfig = from_mapping(EngineConfig, json.loads(options.config.read_text()), str(options.config))
    os.environ.update(before_paddle(config.memory.wanted()))  # first: the profile of the chip sets only what is not set
    environment.prepare(config.num_threads or current.num_threads, config.device, current.device_profiles)
    return serve(options.socket, config, current)


if __name__ == "__main__":
    sys.exit(main())
