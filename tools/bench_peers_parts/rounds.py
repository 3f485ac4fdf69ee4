"""Alternating rounds: probe, engine, probe, engine, … probe, for one workload after the other."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from .engines import Worker, WorkerDied
from .probe import BandwidthProbe
from .shell import machine_cpu_s
from .table import OURS
from .worker import Task

_MAX_OTHER_CORES = 0.1
Round = dict[str, dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """Prompts of the same length that start together."""

    streams: int
    prompt_tokens: int
    new_tokens: int = 32

    def task(self, seed: int, id_limit: int) -> Task:
        return Task(self.streams, self.prompt_tokens, self.new_tokens, seed, id_limit)


#: the single stream decodes after its 512 tokens; batches have short prompts
WORKLOADS = {"streams_1": Workload(1, 512), "streams_8": Workload(8, 32), "streams_16": Workload(16, 32)}


def play(
    workers: dict[str, Worker], num_rounds: int, id_limit: int, workloads: dict[str, Workload] = WORKLOADS
) -> dict[str, Any]:
    """All rounds, the order of the engines turned around in every second one.

    A peer that dies is left out from then on, and the result says why; without ours there is nothing to compare.

    Raises:
        WorkerDied: ours did.
    """
    game = _Game(workers, id_limit)
    for workload in workloads.values():
        game.warm_up(workload)
    rounds: list[Round] = []
    for number in range(num_rounds):
        rounds.append({})
        for name, workload in workloads.items():
            started_s = time.monotonic()
            rounds[-1][name] = game.turn(workload, number)
            took_s = time.monotonic() - started_s
            print(f"  round {number + 1}/{num_rounds} {name} ({took_s:.0f} s): {_brief(rounds[-1][name])}", flush=True)
    game.close()
    shares = {name: round(busy_s / max(game.idle_s[name], 1e-9), 4) for name, busy_s in game.idle_busy_s.items()}
    print(f"  share of a core that each took while it should sleep: {shares}", flush=True)
    busiest = max(each["other_cores"] for one in rounds for figures in one.values() for each in figures.values())
    if busiest > _MAX_OTHER_CORES:
        print(f"  warning: other processes took up to {busiest} cores meanwhile; repeat this on a quiet machine", flush=True)
    return {"rounds": rounds, "peak_rss_bytes": game.peak_rss_bytes, "idle_cpu_share": shares, "died": game.died}


class _Game:
    """The state of a comparison."""

    def __init__(self, workers: dict[str, Worker], id_limit: int) -> None:
        self._workers = dict(workers)
        self._id_limit = id_limit
        self._probe = BandwidthProbe()
        self._seed = 0
        self.died: dict[str, str] = {}
        self.peak_rss_bytes: dict[str, int] = {}
        self.idle_busy_s = dict.fromkeys(workers, 0.0)
        self.idle_s = dict.fromkeys(workers, 0.0)
        self._asleep_since_s = dict.fromkeys(workers, time.monotonic())

    def warm_up(self, workload: Workload) -> None:
        """The workload once in brief, so that kernels are made and memory is there."""
        for name in list(self._workers):
            self._measure(name, dataclasses.replace(workload, new_tokens=3))

    def turn(self, workload: Workload, number: int) -> dict[str, dict[str, float]]:
        """One workload on every engine; ``probe_gb_s`` is the mean of the probes before and after."""
        figures: dict[str, dict[str, float]] = {}
        names = list(self._workers)
        before = self._probe.gb_per_s()
        for name in names if number % 2 == 0 else names[::-1]:
            measured = self._measure(name, workload)
            after = self._probe.gb_per_s()
            if measured is not None:
                figures[name] = {**measured, "probe_gb_s": round((before + after) / 2, 2)}
            before = after
        return figures

    def close(self) -> None:
        self._probe.close()

    def _measure(self, name: str, workload: Workload) -> dict[str, float] | None:
        worker = self._workers[name]
        self.idle_busy_s[name] += worker.idle_cpu_s()
        self.idle_s[name] += time.monotonic() - self._asleep_since_s[name]
        self._seed += 1
        others_s, started_s = machine_cpu_s() - worker.cpu_s(), time.monotonic()
        try:
            result = worker.measure(workload.task(self._seed, self._id_limit))
        except WorkerDied as error:
            if name == OURS:
                raise
            print(f"  {error}", flush=True)
            self.died[name] = str(error)
            del self._workers[name]
            return None
        self._asleep_since_s[name] = time.monotonic()
        others_s = machine_cpu_s() - worker.cpu_s() - others_s
        self.peak_rss_bytes[name] = result.peak_rss_bytes
        return {
            "prefill_tokens_per_s": round(result.prefill_tokens_per_s, 3),
            "decode_tokens_per_s": round(result.decode_tokens_per_s, 3),
            # 0 where the machine is ours; more says that the figures beside it are worth little
            "other_cores": round(max(0.0, others_s / (time.monotonic() - started_s)), 2),
        }


def _brief(figures: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{name} {each['prefill_tokens_per_s']:.1f} + {each['decode_tokens_per_s']:.1f} tokens/s at {each['probe_gb_s']:.1f} GB/s"
        for name, each in figures.items()
    )
