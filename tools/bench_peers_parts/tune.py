"""The best settings of each peer: one option after the other, the challenger beside the champion.

Both are loaded and take turns, so that the machine's drift falls on both. A challenger wins with a geometric mean of the three
rates (prefill of 512, decode of 1 and of 16 streams) that is at least 2 % higher.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .engines import Engines, Worker, WorkerDied
from .rounds import Workload
from .shell import machine_cpu_s
from .table import LLAMA, OPENVINO

#: tried from top to bottom; later rows start from what won above
GRIDS: dict[str, list[tuple[str, list[Any]]]] = {
    LLAMA: [
        ("flash_attn", [True, False]),
        ("kv_unified", [False, True]),
        ("repack", [True, False]),
        ("ubatch", [512, 256, 128, 2048]),
        ("kv_type", ["f16", "q8_0"]),
    ],
    OPENVINO: [
        ("runtime", ["paged", "stateful"]),
        ("weights", ["asym", "sym"]),
        ("properties.DYNAMIC_QUANTIZATION_GROUP_SIZE", [None, 64, 128, 256, str(2**64 - 1), 0]),
        ("properties.INFERENCE_PRECISION_HINT", [None, "f32"]),
        ("properties.KV_CACHE_PRECISION", [None, "bf16", "f32"]),
        ("properties.ENABLE_CPU_PINNING", [None, False]),
    ],
}
_WORKLOADS = {"streams_1": Workload(1, 512, 12), "streams_16": Workload(16, 32, 12)}
_NEEDED_GAIN = 1.02


def changed(settings: dict[str, Any], option: str, value: Any) -> dict[str, Any]:
    """A copy with one option set; a dotted name is one level down, and ``None`` leaves the engine's own default."""
    head, dot, rest = option.partition(".")
    copy = dict(settings)
    if dot:
        copy[head] = changed(copy.get(head, {}), rest, value)
    elif value is None:
        copy.pop(head, None)
    else:
        copy[head] = value
    return copy


def gain(challenger: list[dict[str, float]], champion: list[dict[str, float]]) -> float:
    """Geometric mean over the rates of the median ratio within a round."""
    ratios = [
        statistics.median(mine[rate] / theirs[rate] for mine, theirs in zip(challenger, champion, strict=True))
        for rate in champion[0]
    ]
    return statistics.geometric_mean(ratios)


def tune(
    name: str, engines: Engines, id_limit: int, num_rounds: int, prepare: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Walk the grid of one peer. ``prepare`` makes what a setting needs. Returns the winner and every trial.

    Raises:
        WorkerDied: the champion did.
    """
    champion: dict[str, Any] = {}
    for option, values in GRIDS[name]:
        champion = changed(champion, option, values[0])
    trials: list[dict[str, Any]] = []
    prepare(champion)
    holder = engines.start(name, champion, f"{name}-champion")
    try:
        for option, values in GRIDS[name]:
            for value in values[1:]:
                if option == "kv_type" and not champion.get("flash_attn"):
                    continue  # a quantised cache needs flash attention
                settings = changed(champion, option, value)
                prepare(settings)
                trial, challenger = _duel(engines, name, settings, holder, id_limit, num_rounds)
                trials.append({"option": option, "value": value, **trial})
                print(f"  {name}: {option} = {value}: {trial}", flush=True)
                if challenger is not None:
                    holder.close()
                    holder, champion = challenger, settings
    finally:
        holder.close()
    return {"settings": champion, "trials": trials}


def _duel(
    engines: Engines, name: str, settings: dict[str, Any], holder: Worker, id_limit: int, num_rounds: int
) -> tuple[dict[str, Any], Worker | None]:
    """What came out, and the challenger's worker if it won; otherwise it is ended."""
    try:
        challenger = engines.start(name, settings, f"{name}-challenger")
    except WorkerDied as error:
        return {"refused": str(error)}, None
    won = False
    try:
        seed = 0
        figures: dict[Worker, list[dict[str, float]]] = {holder: [], challenger: []}
        others_s, started_s = _others_cpu_s(holder, challenger), time.monotonic()
        for number in range(num_rounds + 1):  # the first one warms up
            for worker in (holder, challenger) if number % 2 else (challenger, holder):
                figures[worker].append(_rates(worker, seed, id_limit, brief=number == 0))
                seed += 1
        others_s = _others_cpu_s(holder, challenger) - others_s
        other_cores = round(max(0.0, others_s / (time.monotonic() - started_s)), 2)
        factor = gain(figures[challenger][1:], figures[holder][1:])
        won = factor >= _NEEDED_GAIN
        rates = {key: round(statistics.median(each[key] for each in figures[challenger][1:]), 2) for key in figures[holder][0]}
        return {"gain": round(factor, 3), "taken": won, "other_cores": other_cores, **rates}, challenger if won else None
    except WorkerDied as error:
        if not holder.is_alive():
            raise
        return {"refused": str(error)}, None
    finally:
        if not won:
            challenger.close()


def _others_cpu_s(holder: Worker, challenger: Worker) -> float:
    """Processor time of everybody else: where it grows, a trial is worth little."""
    return machine_cpu_s() - holder.cpu_s() - challenger.cpu_s()


def _rates(worker: Worker, seed: int, id_limit: int, brief: bool) -> dict[str, float]:
    rates = {}
    for key, workload in _WORKLOADS.items():
        chosen = Workload(workload.streams, workload.prompt_tokens, 3) if brief else workload
        result = worker.measure(chosen.task(seed, id_limit))
        if workload.streams == 1:
            rates["prefill"] = result.prefill_tokens_per_s
        rates[f"decode_{key}"] = result.decode_tokens_per_s
    return rates


def write(path: Path, tuned: dict[str, dict[str, Any]], versions: dict[str, str]) -> None:
    """Keep the winners, and the trials as the reason for them; peers that were not tuned keep what they had."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored["versions"] = versions
    for key in ("settings", "trials"):
        stored[key] = {**stored.get(key, {}), **{name: result[key] for name, result in tuned.items()}}
    path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
