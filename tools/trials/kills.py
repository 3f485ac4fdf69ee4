"""``kill -9`` of each kind of process under streams."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from trials.clients import Clients
from trials.server import Server

_NOTICED_S = 5.0


HELP = "kill -9 under streams"
_KINDS = ("engine", "worker", "supervisor")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds of load before each kill")
    parser.add_argument("--what", nargs="+", choices=_KINDS, default=list(_KINDS))


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Kill each kind of process, again and again."""
    result: dict[str, Any] = {}
    for what in options.what:
        with Server(directory, options.log) as server:
            result[what] = _kill(server, what, options)
    left_over = any(part["processes_left"] or part["directories_left"] for part in result.values())
    lost = {name for part in result.values() for name in part["outcomes"]} & {"ReadTimeout", "ended early", "mixed versions"}
    too_slow = any(part["silence_s_max"] > _NOTICED_S for part in result.values())
    return {**result, "passed": not left_over and not lost and not too_slow}


def _kill(server: Server, what: str, options: argparse.Namespace) -> dict[str, Any]:
    back_s: list[float] = []
    left = 0
    with Clients(server.url, options.streams) as clients:
        for _ in range(options.times):
            time.sleep(options.pause)
            family = psutil.Process(server.process.pid).children(recursive=True)
            killed = server.pids(what)
            os.kill(killed[0], signal.SIGKILL)
            killed_s = time.monotonic()
            if what == "supervisor":
                server.process.wait()
                _, alive = psutil.wait_procs(family, timeout=_NOTICED_S)
                left += len(alive)
                server.start()
            else:
                server.wait_replaced(what, killed)
            server.wait_ready()
            back_s.append(time.monotonic() - killed_s)
    leftovers = [path.name for path in server.run_dir.glob("serve-*") if path.name != f"serve-{server.process.pid}"]
    return {
        "kills": options.times,
        "outcomes": dict(clients.outcomes),
        "silence_s_max": round(max(clients.silences_s, default=0.0), 2),
        "back_s_max": round(max(back_s), 2),
        "processes_left": left,
        "directories_left": leftovers,
    }


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    return [
        f"| `kill -9` of the {what}, {result[what]['kills']} times | {result[what]['outcomes']}; "
        f"longest silence {result[what]['silence_s_max']} s, back after at most {result[what]['back_s_max']} s, "
        f"{result[what]['processes_left']} processes left |"
        for what in options.what
    ]
