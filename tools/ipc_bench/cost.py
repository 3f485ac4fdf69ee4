"""What one token frame costs, end to end: processor time of each process in its way, and latency from step to reader."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

from ipc_bench.service import Service, Setup, serve

_WARM_S = 1.0


def cost(arm: str, num_streams: int, window_s: float, steps_per_s: float) -> dict[str, float]:
    """Figures of one round.

    ``dirty-stream`` gets a dirty worker for each stream, for one worker does not run two: as many copies of the model.
    """
    num_http_workers = min(num_streams, 2)
    num_dirty_workers = num_streams if arm == "dirty-stream" else 1
    setup = Setup(arm, steps_per_s, num_http_workers, num_dirty_workers, dirty_limit=num_dirty_workers)
    with serve(setup) as service:
        num_frames = round((2 * _WARM_S + window_s) * steps_per_s)
        runs = _Runs(service, num_http_workers, num_streams // num_http_workers, num_frames)
        time.sleep(_WARM_S)
        start_ns, before = time.monotonic_ns(), service.cpu_ns()
        time.sleep(window_s)
        end_ns, after = time.monotonic_ns(), service.cpu_ns()
        streams = runs.join()
    errors = [stream["error"] for stream in streams if "error" in stream]
    if errors:
        raise RuntimeError(f"{arm} with {num_streams} streams: {errors[0]}")
    frames = [(got_ns, stamp_ns) for stream in streams for got_ns, stamp_ns in stream["received"] if start_ns <= got_ns < end_ns]
    latency_ms = sorted((got_ns - stamp_ns) / 1e6 for got_ns, stamp_ns in frames)
    spent_us = {f"cpu_us_{part}": (after[part] - before[part]) / 1e3 / len(frames) for part in after}
    return {
        **spent_us,
        "cpu_us_total": sum(spent_us.values()),
        "latency_ms_median": statistics.median(latency_ms),
        "latency_ms_p99": latency_ms[int(len(latency_ms) * 0.99)],
        "delivered_share": len(frames) / (num_streams * steps_per_s * (end_ns - start_ns) / 1e9),
    }


class _Runs:
    """One call for each HTTP worker at a time, each with its share of the streams."""

    def __init__(self, service: Service, num_workers: int, num_streams_each: int, num_frames: int) -> None:
        self._service = service
        self._call = {"num_streams": num_streams_each, "num_frames": num_frames, "exclusive": True}
        self._streams: list[dict[str, Any]] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(num_workers)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        # the kernel picks the worker: ask until one is free
        while (answer := self._service.call("/run", **self._call)).get("busy"):
            pass
        self._streams += answer["streams"]

    def join(self) -> list[dict[str, Any]]:
        for thread in self._threads:
            thread.join()
        return self._streams
