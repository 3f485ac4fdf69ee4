"""The engine in a process of its own behind ZeroMQ frames, or as a stateful "dirty worker" of Gunicorn?

    HTTP workers (Gunicorn, gthread) ══ zeromq ══════════════════════════► engine process
    HTTP workers (Gunicorn, gthread) ── dirty-stream ───► dirty arbiter ──► dirty worker    a generator a request
    HTTP workers (Gunicorn, gthread) ── dirty-exchange ─► dirty arbiter ──► dirty worker    polled, all requests in one call

A script stands in for the model, so the way of the frames is the only thing that works. Everything else is real: Gunicorn, its
dirty arbiter and client, ``paddle_ds.ipc`` and the supervisor's restart rule. The arms take turns, round by round, since a shared
machine drifts: read medians over the rounds and ratios within a round, never one absolute time.

    python tools/bench_ipc.py --rounds 5 > bench-results/ipc.json
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import logging
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "serving"), str(ROOT / "tools")]

from ipc_bench import failures  # noqa: E402
from ipc_bench.cost import cost  # noqa: E402
from ipc_bench.service import ARMS  # noqa: E402

DIRTY = ARMS[1:]
BASE = ARMS[0]

Case = Callable[[str], dict[str, Any]]
Rounds = dict[str, dict[str, list[dict[str, Any]]]]


def cases(options: argparse.Namespace) -> dict[str, tuple[Case, Sequence[str]]]:
    """What is measured, and in which arms."""
    every: dict[str, tuple[Case, Sequence[str]]] = {
        f"cost_{num_streams}": (
            functools.partial(cost, num_streams=num_streams, window_s=options.window, steps_per_s=options.rate),
            ARMS,
        )
        for num_streams in options.streams
    }
    every |= {
        "leave": (failures.leave, ARMS),
        "concurrency": (failures.concurrency, ARMS),
        "concurrency_8_threads": (functools.partial(failures.concurrency, num_dirty_threads=8), ["dirty-stream"]),
        "restart": (failures.restart, ARMS),
        "arbiter": (failures.arbiter, DIRTY),
        "loading": (failures.loading, ARMS),
        "crash_loop": (failures.crash_loop, ARMS),
        "stop": (failures.stop, ARMS),
        "versions": (failures.versions, ARMS),
        "reload_limited": (functools.partial(failures.reload, limit=1), ["dirty-stream"]),
        "reload_unlimited": (functools.partial(failures.reload, limit=None), ["dirty-stream"]),
        "abandon": (failures.abandon, ["dirty-stream"]),
    }
    return {name: case for name, case in every.items() if not options.only or name in options.only}


def play(chosen: dict[str, tuple[Case, Sequence[str]]], num_rounds: int) -> Rounds:
    """All rounds, the order of the arms turned around in every second one."""
    rounds: Rounds = {name: {arm: [] for arm in arms} for name, (_, arms) in chosen.items()}
    for number in range(num_rounds):
        for name, (case, arms) in chosen.items():
            for arm in arms if number % 2 == 0 else arms[::-1]:
                figures = case(arm)
                rounds[name][arm].append(figures)
                print(f"{number + 1}/{num_rounds} {name} {arm} {json.dumps(figures)}", file=sys.stderr, flush=True)
    return rounds


def is_number(value: Any) -> bool:
    """A figure that has a median."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def summary(values: list[Any]) -> Any:
    """The median of numbers; of anything else how often it came."""
    if all(is_number(value) for value in values):
        return round(statistics.median(values), 4)
    return dict(collections.Counter(json.dumps(value) for value in values))


def ratios(figures: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, float]:
    """Median over the rounds of each figure in relation to ZeroMQ's in the same round."""
    result = {}
    for key in figures[0]:
        pairs = [(mine[key], theirs[key]) for mine, theirs in zip(figures, base, strict=True)]
        if all(is_number(mine) and is_number(theirs) and theirs > 0 for mine, theirs in pairs):
            result[key] = round(statistics.median(mine / theirs for mine, theirs in pairs), 3)
    return result


def report(rounds: Rounds) -> dict[str, Any]:
    """Medians and ratios of every case."""
    result: dict[str, Any] = {}
    for name, arms in rounds.items():
        result[name] = {}
        for arm, figures in arms.items():
            result[name][arm] = {"medians": {key: summary([each[key] for each in figures]) for key in figures[0]}}
            if arm != BASE and BASE in arms:
                result[name][arm]["ratios_to_zeromq"] = ratios(figures, arms[BASE])
    return result


def main() -> None:
    """Play the rounds and print the report as JSON; progress goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16, 64], help="how many at a time, for the cost of a frame")
    parser.add_argument("--rate", type=float, default=25.0, help="engine steps a second")
    parser.add_argument("--window", type=float, default=6.0, help="seconds over which the cost is taken")
    parser.add_argument("--only", nargs="*", help="these cases")
    options = parser.parse_args()
    # killed engines are the point here
    logging.getLogger("paddle_ds_serving").addHandler(logging.NullHandler())
    rounds = play(cases(options), options.rounds)
    head = {"rounds": options.rounds, "steps_per_s": options.rate, "window_s": options.window}
    print(json.dumps({**head, "cases": report(rounds)}, indent=2))


if __name__ == "__main__":
    main()
