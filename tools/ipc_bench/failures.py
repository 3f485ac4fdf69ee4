"""What happens when something leaves, dies, loads, stops, or is replaced: one function a question, one round a call."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import threading
import time
from typing import Any

import psutil

from ipc_bench.service import APPS, Service, Setup, error_kind, serve

Figures = dict[str, Any]

_FOREVER = 100_000


class _Background:
    """A call that goes on while the case does something else."""

    def __init__(self, service: Service, **call: Any) -> None:
        self._answer: dict[str, Any] | Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(service, call))
        self._thread.start()

    def _run(self, service: Service, call: dict[str, Any]) -> None:
        try:
            self._answer = service.call("/run", **call)
        except Exception as error:
            self._answer = error

    def streams(self) -> list[dict[str, Any]]:
        """What became of the streams; empty where the HTTP connection broke."""
        self._thread.join()
        return self._answer["streams"] if isinstance(self._answer, dict) else []


def leave(arm: str) -> Figures:
    """Steps the engine still spends on a request whose client left: in mid-answer, and two seconds of prompt before its end."""
    figures: Figures = {}
    with serve(Setup(arm)) as service:
        period_ns = 1e9 / service.setup.steps_per_s

        def steps_after(stream: dict[str, Any]) -> float:
            ends = [entry for entry in service.notes("end") if entry["request_id"] == stream["request_id"]]
            return (ends[0]["at_ns"] - stream["left_ns"]) / period_ns if ends else float("nan")

        (answer,) = service.call("/run", num_streams=1, num_frames=100, leave_after_frames=20)["streams"]
        time.sleep(1.0)
        figures["steps_wasted_mid_answer"] = steps_after(answer)
        (answer,) = service.call("/run", num_streams=1, num_prompt=50, num_frames=100, leave_after_s=0.4)["streams"]
        time.sleep(3.0)
        figures["steps_wasted_in_prompt"] = steps_after(answer)
    return figures


def concurrency(arm: str, num_dirty_threads: int = 1) -> Figures:
    """Four one-second streams at once, one model: when each sees its first frame."""
    with serve(Setup(arm, num_dirty_threads=num_dirty_threads)) as service:
        streams = service.call("/run", num_streams=4, num_frames=25)["streams"]
    first_s = sorted((stream["received"][0][0] - stream["opened_ns"]) / 1e9 for stream in streams)
    return {"first_frame_s_of_first": first_s[0], "first_frame_s_of_last": first_s[-1]}


def restart(arm: str) -> Figures:
    """``kill -9`` for the engine process with eight streams in flight."""
    with serve(Setup(arm)) as service:
        http_before = {worker.pid for worker in service.http_workers()}
        flights = [_Background(service, num_streams=4, num_frames=_FOREVER) for _ in range(2)]
        time.sleep(1.5)
        killed_ns = time.monotonic_ns()
        os.kill(service.engine_pids()[0], signal.SIGKILL)
        back_s = _until_served(service, killed_ns, timeout_s=60.0)
        streams = [stream for flight in flights for stream in flight.streams()]
        http_after = {worker.pid for worker in service.http_workers()}
    noticed_s = [(stream["ended_ns"] - killed_ns) / 1e9 for stream in streams]
    return {
        "error_s_first": min(noticed_s),
        "error_s_median": statistics.median(noticed_s),
        "error_s_last": max(noticed_s),
        "errors": sorted({error_kind(stream.get("error", "none")) for stream in streams}),
        "service_back_s": back_s,
        "http_workers_survive": http_before == http_after,
    }


def arbiter(arm: str) -> Figures:
    """``kill -9`` for Gunicorn's dirty arbiter, the process between the two; ZeroMQ has none."""
    with serve(Setup(arm)) as service:
        service.remember()
        orphans = service.dirty_workers()
        killed_ns = time.monotonic_ns()
        service.arbiter().kill()
        back_s = _until_served(service, killed_ns, timeout_s=10.0)
        alive = [orphan for orphan in orphans if orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE]
        num_models = len(alive) + len(service.dirty_workers())
        for worker in service.http_workers():
            worker.kill()
        time.sleep(1.0)
        healed_s = _until_served(service, time.monotonic_ns(), timeout_s=20.0)
    return {"service_back_s": back_s, "copies_of_the_model": num_models, "served_after_new_http_workers": healed_s is not None}


def loading(arm: str) -> Figures:
    """What a health probe learns while the model loads for eight seconds."""
    with serve(Setup(arm, load_s=8.0), wait=False) as service:
        while not service.notes("boot"):
            time.sleep(0.05)
        time.sleep(2.0)
        answer = _health(service)
    return {"state": error_kind(answer["state"]), "answer_s": answer["took_s"]}


def crash_loop(arm: str) -> Figures:
    """How often a model that cannot be loaded is tried in ten seconds."""
    with serve(Setup(arm, load_fails=True), wait=False) as service:
        while not service.notes("boot"):
            time.sleep(0.05)
        time.sleep(10.0)
        return {"boots_in_10_s": len(service.notes("boot"))}


def stop(arm: str) -> Figures:
    """Four two-second streams in flight when the server is told to stop, with ten seconds of grace."""
    with serve(Setup(arm)) as service:
        flight = _Background(service, num_streams=4 if arm != "dirty-stream" else 1, num_frames=50)
        time.sleep(0.5)
        service.remember()
        service.gunicorn.send_signal(signal.SIGTERM)
        streams = flight.streams()
    whole = [stream for stream in streams if len(stream["received"]) == 50]
    return {"finished_share": len(whole) / len(streams) if streams else 0.0}


def versions(arm: str) -> Figures:
    """Two models side by side: do they share a process, and how soon does one answer while the other streams for two seconds?"""
    with serve(Setup(arm, num_versions=2, num_dirty_workers=2)) as service:
        if arm == "zeromq":
            pids = service.engine_pids()
        else:
            pids = [service.call("/execute", app=app, action="where")["result"] for app in APPS[arm]]
        flight = _Background(service, num_streams=1, num_frames=50, version=0)
        time.sleep(0.5)
        (other,) = service.call("/run", num_streams=1, num_frames=5, version=1)["streams"]
        flight.streams()
    wait_ns = other["received"][0][0] - other["opened_ns"]
    return {"own_processes": len(set(pids)) == 2, "other_first_frame_steps": wait_ns / 1e9 * service.setup.steps_per_s}


def reload(arm: str, limit: int | None) -> Figures:
    """Does ``SIGHUP`` to Gunicorn bring the application into a new dirty worker? ``limit`` is the ``:N`` of its name."""
    with serve(Setup(arm, dirty_limit=limit)) as service:
        before = service.call("/execute", app=APPS[arm][0], action="where")["result"]
        service.remember()
        service.gunicorn.send_signal(signal.SIGHUP)
        time.sleep(4.0)
        service.wait_ready()
        after = service.call("/execute", app=APPS[arm][0], action="where")["result"]
        return {"new_process_serves": before != after, "boots": len(service.notes("boot"))}


def abandon(arm: str) -> Figures:
    """A handler drops a dirty stream's iterator and its thread makes another call."""
    with serve(Setup(arm)) as service:
        answer = service.call("/abandon", app=APPS[arm][0], num_frames=25)
    return {"next_call": "fine" if "next" in answer else error_kind(answer["error"])}


def _health(service: Service) -> dict[str, Any]:
    while True:
        with contextlib.suppress(OSError):
            return service.call("/health")
        time.sleep(0.05)


def _until_served(service: Service, since_ns: int, timeout_s: float) -> float | None:
    """Seconds until a new stream gets its frame; ``None`` where none does within the limit. Tries overlap: some hang."""
    served_ns: list[int] = []

    def attempt() -> None:
        with contextlib.suppress(OSError):
            (stream,) = service.call("/run", num_streams=1, num_frames=1)["streams"]
            served_ns.extend(got_ns for got_ns, _ in stream["received"])

    while not served_ns and time.monotonic_ns() - since_ns < timeout_s * 1e9:
        threading.Thread(target=attempt, daemon=True).start()
        time.sleep(0.1)
    return (min(served_ns) - since_ns) / 1e9 if served_ns else None
