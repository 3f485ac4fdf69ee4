"""SIGTERM to the supervisor under streams."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from trials.readers import Client, Pace, Readers
from trials.server import BACK_S, Server
from trials.sse_load import body

HELP = "SIGTERM under streams"
_SHM = Path("/dev/shm")
#: after the signal, how long new connections may still be taken
_CLOSED_S = 2.0
#: after the grace period, how long the end may take
_END_S = 10.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=900, help="tokens of each answer")
    parser.add_argument("--grace", type=float, default=30.0, help="--grace of the server")


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Stop a server when all streams have begun."""
    shared = _names(_SHM)
    clients = [Client("prompt", body(number, options.tokens, False), number % 2 == 0) for number in range(options.streams)]
    with Server(directory, options.log, ["--grace", str(options.grace)]) as server:
        port = int(server.url.rpartition(":")[2])
        readers = Readers(port, clients, Pace(1000.0, 0.0, 0.0, BACK_S + options.grace))
        thread = threading.Thread(target=lambda: asyncio.run(readers.run()))
        thread.start()
        while readers.num_begun < options.streams:
            time.sleep(0.01)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        door = _knock_until_the_end(port, server.process)
        exit_s = time.monotonic() - asked_s
        thread.join()
    _, alive = psutil.wait_procs(family, timeout=_END_S)
    cut_s = [client.ended_s - asked_s for client in clients if client.outcome != "ok"]
    result = {
        "outcomes": dict(Counter(client.outcome for client in clients)),
        "first_cut_s": round(min(cut_s), 2) if cut_s else None,
        **door,
        "exit_status": server.process.returncode,
        "exit_s": round(exit_s, 2),
        "processes_left": len(alive),
        "files_left": sorted(_names(server.run_dir) | (_names(_SHM) - shared)),
    }
    return {**result, "passed": _passed(result, options.grace)}


def _passed(result: dict[str, Any], grace_s: float) -> bool:
    cut_early = result["first_cut_s"] is not None and result["first_cut_s"] < grace_s
    closed = result["last_connection_s"] < _CLOSED_S and set(result["late_connections"]) <= {"answered", "closed"}
    left = result["processes_left"] or result["files_left"]
    return not cut_early and closed and not left and result["exit_status"] == 0 and result["exit_s"] < grace_s + _END_S


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


def _knock_until_the_end(port: int, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Try new connections until the process has ended, and tell when the last one was taken and what became of each."""
    asked_s = time.monotonic()
    last_s = 0.0
    taken: list[socket.socket] = []
    while process.poll() is None and time.monotonic() < asked_s + BACK_S + _END_S:
        visitor = socket.socket()
        visitor.settimeout(_CLOSED_S)
        try:
            visitor.connect(("127.0.0.1", port))
            visitor.sendall(b"GET /health/live HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n")
        except ConnectionError:
            visitor.close()
        else:
            last_s = time.monotonic() - asked_s
            taken.append(visitor)
        time.sleep(0.05)
    return {"last_connection_s": round(last_s, 2), "late_connections": dict(Counter(_fate(visitor) for visitor in taken))}


def _fate(visitor: socket.socket) -> str:
    """What became of a connection that was taken."""
    try:
        return "answered" if visitor.recv(64) else "closed"
    except ConnectionError:
        return "closed"
    except TimeoutError:
        return "hangs"
    finally:
        visitor.close()


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    cut = "none cut" if result["first_cut_s"] is None else f"the first cut after {result['first_cut_s']} s"
    left = f"{result['processes_left']} processes and {len(result['files_left'])} files left"
    what = f"`SIGTERM` under {options.streams} streams, {options.grace:g} s of grace"
    end = f"exit status {result['exit_status']} after {result['exit_s']} s, {left}"
    door = f"no connection after {result['last_connection_s']} s"
    return [f"| {what} | {result['outcomes']}, {cut}; {door}; {end} |"]
