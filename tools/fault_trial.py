#!/usr/bin/env python3
"""Harm a running server and count what its clients saw: hot updates under streams, and kill -9 of each of its processes.

    tools/fault_trial.py update --seconds 300 --every 20 --streams 16
    tools/fault_trial.py kill --times 20 --streams 8

Starts its own server with the embedded model, prints one JSON object and one row of a Markdown table. Exit status 1 where a
request was lost, versions were mixed, or something did not come back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import requests

from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import PaddleDSError
from paddle_ds_serving.supervision import control

_NOTICED_S = 5.0
_BACK_S = 60.0


class Server:
    """``paddle-ds serve`` in a directory of its own."""

    def __init__(self, directory: Path, log: Path) -> None:
        self.run_dir = directory / "run"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log.open("ab")
        self._command = [sys.executable, "-m", "paddle_ds", "serve", "--port", str(port), "--num-threads", "1"]
        self.start()

    def start(self) -> None:
        environ = {**os.environ, "PADDLE_DS_RUNTIME_DIR": str(self.run_dir), "PADDLE_DS_LOG_FORMAT": "json"}
        self.process = subprocess.Popen(self._command, env=environ, stdout=self._log, stderr=self._log, start_new_session=True)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until it answers."""
        started_s = time.monotonic()
        while time.monotonic() < started_s + _BACK_S:
            try:
                if requests.get(f"{self.url}/health/ready", timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)
        raise SystemExit(f"the server is not back after {_BACK_S:g} s; its log is {self._log.name}")

    def wait_replaced(self, what: str, before: list[int]) -> None:
        """Until as many processes are there as before, and the first is another one."""
        deadline_s = time.monotonic() + _BACK_S
        while before[0] in (now := self.pids(what)) or len(now) < len(before):
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the {what} was not replaced within {_BACK_S:g} s")
            time.sleep(0.02)

    def ask(self, op: str, **arguments: Any) -> Any:
        return control.ask(control.find(self.run_dir, self.process.pid), op, timeout_s=300, **arguments)

    def pids(self, what: str) -> list[int]:
        if what == "supervisor":
            return [self.process.pid]
        children = psutil.Process(self.process.pid).children(recursive=True)
        word = "gunicorn" if what == "worker" else "engine.process"
        found = []
        for child in children:
            with contextlib.suppress(psutil.Error):  # it has just ended
                if word in " ".join(child.cmdline()) and (what == "engine" or not child.children()):
                    found.append(child.pid)
        return found

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=120)


class Clients:
    """Streams without a pause, and what became of each."""

    def __init__(self, url: str, num_streams: int) -> None:
        self._url = url
        self._over = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        #: seconds without a word, the longest of each request
        self.silences_s: list[float] = []
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(num_streams)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, index: int) -> None:
        while not self._over.is_set():
            outcome = self._ask(index)
            self.outcomes[outcome] += 1
            if outcome != "ok":
                time.sleep(0.1)

    def _ask(self, index: int) -> str:
        body = {"messages": [{"role": "user", "content": f"{index}+7"}], "stream": True, "temperature": 0}
        versions: set[str] = set()
        heard_s, longest_s, done = time.monotonic(), 0.0, False
        try:
            with requests.post(f"{self._url}/v1/chat/completions", json=body, stream=True, timeout=_BACK_S) as response:
                if response.status_code != 200:
                    return f"{response.status_code} {response.json()['error']['code']}"
                for line in response.iter_lines():
                    longest_s, heard_s = max(longest_s, time.monotonic() - heard_s), time.monotonic()
                    if line == b"data: [DONE]":
                        done = True
                    elif line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        if "error" in event:
                            return f"event {event['error']['code']}"
                        versions.add(event["weight_version"])
        except requests.ConnectionError:
            return "connection closed"
        except requests.RequestException as error:
            return type(error).__name__
        finally:
            self.silences_s.append(max(longest_s, time.monotonic() - heard_s))
        if len(versions) != 1:
            return "mixed versions"
        self.versions[versions.pop()] += 1
        return "ok" if done else "ended early"


def update_trial(server: Server, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Change to a copy of the model and back, again and again."""
    copy = Path(shutil.copytree(EMBEDDED_MODEL, directory / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "source": "copy"}))
    seconds: list[float] = []
    refused: list[str] = []
    with Clients(server.url, options.streams) as clients:
        ends_s = time.monotonic() + options.seconds
        while time.monotonic() < ends_s:
            next_s = time.monotonic() + options.every
            try:
                seconds.append(server.ask("load", path=str((copy, EMBEDDED_MODEL)[len(seconds) % 2]))["seconds"])
            except PaddleDSError as error:
                refused.append(error.message)
            time.sleep(max(0.0, min(next_s, ends_s) - time.monotonic()))
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


def kill_trial(server: Server, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Kill each kind of process, again and again, under load."""
    result: dict[str, Any] = {}
    for what in options.what:
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
        result[what] = {
            "kills": options.times,
            "outcomes": dict(clients.outcomes),
            "silence_s_max": round(max(clients.silences_s, default=0.0), 2),
            "back_s_max": round(max(back_s), 2),
            "processes_left": left,
            "directories_left": leftovers,
        }
    left_over = any(part["processes_left"] or part["directories_left"] for part in result.values())
    lost = {name for part in result.values() for name in part["outcomes"]} & {"ReadTimeout", "ended early", "mixed versions"}
    return {**result, "passed": not left_over and not lost}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    trials = parser.add_subparsers(dest="trial", required=True)
    update = trials.add_parser("update", help="hot updates under streams")
    update.add_argument("--seconds", type=float, default=300.0)
    update.add_argument("--every", type=float, default=20.0, help="seconds from one update to the next")
    update.add_argument("--streams", type=int, default=16)
    kill = trials.add_parser("kill", help="kill -9 under streams")
    kill.add_argument("--times", type=int, default=20)
    kill.add_argument("--streams", type=int, default=8)
    kill.add_argument("--pause", type=float, default=2.0, help="seconds of load before each kill")
    kill.add_argument("--what", nargs="+", choices=("engine", "worker", "supervisor"), default=["engine", "worker", "supervisor"])
    for trial_parser in (update, kill):
        trial_parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file that keeps what the server writes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(143))  # so that the server does not outlive the trial
    with tempfile.TemporaryDirectory(prefix="pds-") as name:
        server = Server(Path(name), options.log)
        try:
            trial = update_trial if options.trial == "update" else kill_trial
            result = {"trial": options.trial, **trial(server, Path(name), options)}
        finally:
            server.stop()
    print(json.dumps(result))
    if options.trial == "update":
        answered = sum(result["outcomes"].values())
        print(
            f"| {result['updates']} hot updates in {options.seconds:g} s under {options.streams} streams | {answered} requests, "
            f"{result['failed']} failed, {result['mixed']} mixed |"
        )
    else:
        for what in options.what:
            part = result[what]
            print(
                f"| `kill -9` of the {what}, {part['kills']} times | {part['outcomes']}; "
                f"longest silence {part['silence_s_max']} s, back after at most {part['back_s_max']} s, "
                f"{part['processes_left']} processes left |"
            )
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
