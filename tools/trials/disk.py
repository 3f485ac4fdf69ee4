"""Full disks under streams: of the log, of feedback, of fetched checkpoints, of the runtime directory."""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from paddle_ds.checkpoints.manifest import verify
from paddle_ds.checkpoints.pull import pull
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import CheckpointError, PaddleDSError
from trials.clients import Clients
from trials.server import Server
from trials.surroundings import lost, metric, small_disk

HELP = "full disks under streams; needs the right to mount"
_PARTS = ("logs", "feedback", "snapshots", "runtime")
#: what a request may end with when the engine or a worker is killed
_OF_A_KILL = (
    "connection closed",
    "ChunkedEncodingError",
    "event engine_died",
    "503 engine_died",
    "503 engine_unavailable",
    "event engine_unavailable",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, with the disk full")
    parser.add_argument("--what", nargs="+", choices=_PARTS, default=list(_PARTS))


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One part after another, each with a server and a disk of its own."""
    parts = {"logs": _logs, "feedback": _feedback, "snapshots": _snapshots, "runtime": _runtime}
    result = {}
    for what in options.what:
        (directory / what).mkdir()
        with small_disk(directory / what / "disk", 16 << 20) as disk:
            result[what] = parts[what](directory / what, disk, options)
    return {**result, "passed": all(part["passed"] for part in result.values())}


def _logs(directory: Path, disk: Any, options: argparse.Namespace) -> dict[str, Any]:
    path = disk.path / "log"
    with Server(directory, path) as server, Clients(server.url, options.streams) as clients:
        time.sleep(options.seconds / 2)
        disk.fill()
        time.sleep(options.seconds)
        disk.free()
        time.sleep(options.seconds / 2)
        clients.stop()
    entries, torn = _read(path)
    requests_told = sum(entry["event"] == "http.request" and entry["path"] == "/v1/chat/completions" for entry in entries)
    lines_lost = sum(entry["lines"] for entry in entries if entry["event"] == "logs.lines_lost")
    with Server(directory, Path("/dev/full")) as server:
        with Clients(server.url, options.streams) as never_room:
            time.sleep(options.seconds / 2)
        server.stop()
        status = server.process.returncode
    return {
        "outcomes": dict(clients.outcomes),
        "requests_told": requests_told,
        "lines_lost": lines_lost,
        "lines_torn": torn,
        "outcomes_never_room": dict(never_room.outcomes),
        "exit_status_never_room": status,
        "passed": not lost(clients.outcomes + never_room.outcomes)
        and lines_lost > 0
        and requests_told + lines_lost >= clients.outcomes.total()
        and status == 0,
    }


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The entries of a log, and how many lines are no JSON."""
    entries, torn = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            torn += line.startswith("{")
    return entries, torn


def _feedback(directory: Path, disk: Any, options: argparse.Namespace) -> dict[str, Any]:
    with (
        Server(directory, options.log, environ={"PADDLE_DS_FEEDBACK_DIR": str(disk.path)}) as server,
        Clients(server.url, options.streams) as clients,
    ):

        def rate() -> int:
            body = {"request_id": "req_1", "rating": "up", "comment": "x" * 4000}
            return requests.post(f"{server.url}/v1/feedback", json=body, timeout=30).status_code

        statuses = [rate()]
        disk.fill()
        statuses += [rate(), rate()]
        disk.free()
        statuses.append(rate())
        clients.stop()
    kept = len((disk.path / "feedback.jsonl").read_text().splitlines())
    well = statuses == [201, 507, 507, 201] and kept == 2 and not lost(clients.outcomes)
    return {"statuses": statuses, "lines_kept": kept, "outcomes": dict(clients.outcomes), "passed": well}


@contextmanager
def _site(directory: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    class Site(http.server.ThreadingHTTPServer):
        def handle_error(self, *args: Any) -> None:
            """Who has seen enough leaves."""

    site = Site(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{site.server_address[1]}"
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


def _snapshots(directory: Path, disk: Any, options: argparse.Namespace) -> dict[str, Any]:
    remote, out = Path(shutil.copytree(EMBEDDED_MODEL, directory / "remote")), disk.path / "model"
    with _site(remote) as url:
        pull(url, out)
        served, refused = out.resolve(), ""
        with Server(directory, options.log, ["--model", str(out)]) as server, Clients(server.url, options.streams) as clients:
            manifest = json.loads((remote / "manifest.json").read_text())
            (remote / "manifest.json").write_text(json.dumps({**manifest, "source": "another"}))
            disk.fill()
            try:
                pull(url, out)
            except CheckpointError as error:
                refused = error.message
            untouched = out.resolve() == served and verify(out)
            time.sleep(options.seconds)
            disk.free()
            pull(url, out)
            update = server.ask("load", path=str(out))
            time.sleep(options.seconds / 4)  # answers of the new version
    return {
        "refused_with": refused,
        "untouched": untouched,
        "switched": update["weight_version"] != update["previous_version"],
        "outcomes": dict(clients.outcomes),
        "versions": dict(clients.versions),
        "passed": "the disk is full" in refused and untouched and len(clients.versions) == 2 and not lost(clients.outcomes),
    }


def _runtime(directory: Path, disk: Any, options: argparse.Namespace) -> dict[str, Any]:
    with Server(disk.path, options.log) as server:
        with Clients(server.url, options.streams) as before:
            time.sleep(options.seconds / 4)
            disk.fill()
            for path in ("/v1/models", "/v1/completions", "/tokenize", "/nothing", "/admin/status"):
                for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
                    requests.request(method, server.url + path, timeout=30)
            refused = [_refusal(server, "drain", enabled=True), _refusal(server, "load", path=str(EMBEDDED_MODEL))]
            time.sleep(options.seconds)
        with Clients(server.url, options.streams) as while_killed:
            for what in ("worker", "engine"):
                time.sleep(1)
                killed = server.pids(what)
                os.kill(killed[0], signal.SIGKILL)
                server.wait_replaced(what, killed)
                server.wait_ready()
        with Clients(server.url, options.streams) as after:
            time.sleep(options.seconds / 2)
            disk.free()
            server.ask("load", path=str(EMBEDDED_MODEL))
            restarts = metric(server.url, "engine_restarts_total")
        server.stop()
        status = server.process.returncode
    return {
        "outcomes_full": dict(before.outcomes),
        "refused_with": refused,
        "outcomes_while_killed": dict(while_killed.outcomes),
        "outcomes_after": dict(after.outcomes),
        "restarts_told": restarts,
        "exit_status": status,
        "passed": not lost(before.outcomes + after.outcomes)
        and not lost(while_killed.outcomes, *_OF_A_KILL)
        and refused == ["run_directory_error"] * 2
        and (restarts, status) == (1.0, 0),
    }


def _refusal(server: Server, op: str, **question: Any) -> str:
    try:
        return str(server.ask(op, **question))
    except PaddleDSError as error:
        return error.code


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    told = []
    if part := result.get("logs"):
        told.append(
            f"| disk full for the log | {part['outcomes']}; {part['lines_lost']} lines lost and counted, "
            f"{part['lines_torn']} cut; with no room from the start {part['outcomes_never_room']}, "
            f"exit status {part['exit_status_never_room']} |"
        )
    if part := result.get("feedback"):
        told.append(f"| disk full for feedback | ratings answered {part['statuses']}; streams {part['outcomes']} |")
    if part := result.get("snapshots"):
        kept = "untouched" if part["untouched"] else "HARMED"
        told.append(f"| disk full for `pull` | refused, versions {kept}; then pulled and switched to; {part['outcomes']} |")
    if part := result.get("runtime"):
        told.append(
            f"| runtime directory full | {part['outcomes_full']}; `drain` and `update` refused with `run_directory_error`; "
            f"a worker and the engine killed meanwhile: {part['outcomes_while_killed']}; afterwards {part['outcomes_after']} |"
        )
    return told
