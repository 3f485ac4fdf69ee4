"""Bad checkpoints pushed under streams: refused before the switch, or taken back after it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from paddle_ds.errors import PaddleDSError
from trials.clients import Clients
from trials.server import BACK_S, Server

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from e2e import changed_models

HELP = "bad checkpoints pushed under streams"
_SPOILT = {
    "truncated": changed_models.truncated,
    "wrong hash": changed_models.wrong_hash,
    "NaN": changed_models.not_finite,
    "wrong architecture": changed_models.wrong_architecture,
    "fails its canary": changed_models.knows_nothing,
}
#: deaths after an update that make a server take it back
_NUM_DEATHS = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--times", type=int, default=3, help="how often each of them is pushed")
    parser.add_argument("--streams", type=int, default=16)


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Push each kind; then one that passes its canary and dies afterwards."""
    with Server(directory, options.log) as server:
        with Clients(server.url, options.streams) as clients:
            codes = {what: sorted(_push(server, directory, what, options.times)) for what in _SPOILT}
        outcomes = dict(clients.outcomes)
        with Clients(server.url, options.streams) as later:
            taken_back = _die_after_update(server, directory)
    first = set(clients.versions)
    return {
        "refused_with": codes,
        "outcomes": outcomes,
        "versions": dict(clients.versions),
        "taken_back": taken_back,
        "outcomes_while_it_died": dict(later.outcomes),
        "passed": set(outcomes) == {"ok"} and len(first) == 1 and "served" not in str(codes) and taken_back["version"] in first,
    }


def _push(server: Server, directory: Path, what: str, times: int) -> set[str]:
    """The codes of the refusals."""
    path = directory / what.replace(" ", "-")
    _SPOILT[what](path)
    codes = set()
    for _ in range(times):
        try:
            server.ask("load", path=str(path))
            codes.add("served")
        except PaddleDSError as error:
            codes.add(error.code)
    return codes


def _die_after_update(server: Server, directory: Path) -> dict[str, Any]:
    server.ask("load", path=str(changed_models.swap_digits(directory / "other")))
    for num_deaths in range(1, _NUM_DEATHS + 1):
        os.kill(_ready_engine(server), signal.SIGKILL)
        while server.ask("status")["engine_restarts"] < num_deaths:  # noticed, so that nobody is killed twice
            time.sleep(0.05)
    died_s = time.monotonic()
    while not (status := server.ask("status"))["rolled_back_because"] and time.monotonic() < died_s + BACK_S:
        time.sleep(0.1)
    server.wait_ready()
    return {
        "because": status["rolled_back_because"],
        "version": server.ask("status")["engine"]["weight_version"],
        "after_s": round(time.monotonic() - died_s, 1),
    }


def _ready_engine(server: Server) -> int:
    """The process of the engine that serves, as soon as it does."""
    deadline_s = time.monotonic() + BACK_S
    while time.monotonic() < deadline_s:
        engine = server.ask("status")["engine"]
        if engine["state"] == "ready" and engine["pid"] is not None:
            time.sleep(0.5)  # some requests are under way
            return int(engine["pid"])
        time.sleep(0.1)
    raise SystemExit("the engine is not back")


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    codes = ", ".join(f"{what}: `{'`, `'.join(codes)}`" for what, codes in result["refused_with"].items())
    back = result["taken_back"]
    pushed = f"bad checkpoints pushed under {options.streams} streams, {options.times} times each"
    return [
        f"| {pushed} | {codes}; meanwhile {result['outcomes']} |",
        f"| an engine that dies {_NUM_DEATHS} times after an update | {back['because']}; back after {back['after_s']} s |",
    ]
