"""Hot updates under streams."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import PaddleDSError
from trials.clients import Clients
from trials.server import Server

HELP = "hot updates under streams"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds from one update to the next")
    parser.add_argument("--streams", type=int, default=16)


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Change to a copy of the model and back, again and again."""
    copy = Path(shutil.copytree(EMBEDDED_MODEL, directory / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "source": "copy"}))
    seconds: list[float] = []
    refused: list[str] = []
    with Server(directory, options.log) as server, Clients(server.url, options.streams) as clients:
        ends_s = time.monotonic() + options.seconds
        while time.monotonic() < ends_s:
            next_s = time.monotonic() + options.every
            try:
                seconds.append(server.ask("load", path=str((copy, EMBEDDED_MODEL)[len(seconds) % 2]))["seconds"])
            except PaddleDSError as error:
                refused.append(error.message)
            time.sleep(max(0.0, min(next_s, ends_s) - time.monotonic()))
        clients.stop()
    outcomes = dict(clients.outcomes)
    return {
        "updates": len(seconds),
        "refused": refused,
        "update_s_max": max(seconds, default=0.0),
        "outcomes": outcomes,
        "versions": dict(clients.versions),
        "failed": sum(count for name, count in outcomes.items() if name != "ok"),
        "mixed": outcomes.get("mixed versions", 0),
        "passed": set(outcomes) == {"ok"} and not refused and len(seconds) > 0,
    }


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    answered = sum(result["outcomes"].values())
    what = f"{result['updates']} hot updates in {options.seconds:g} s under {options.streams} streams"
    told = f"{answered} requests, {result['failed']} failed, {result['mixed']} mixed; updates ≤ {result['update_s_max']} s"
    return [f"| {what} | {told} |"]
