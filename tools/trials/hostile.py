"""Malformed and hostile requests of many kinds, and whether the server is the same afterwards."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from hypothesis import strategies as st

from trials import hostile_bodies, hostile_http, hostile_schema, hostile_slow
from trials.memory import Peak, mib, now_bytes
from trials.server import Server
from trials.wire import Outcome, Sent, exchange

HELP = "malformed and hostile requests"
_ROOT = Path(__file__).resolve().parents[2]
_KEY = "hostile-trial-0123456789abcdef0123456789abcdef"
_PARTS = ("schema", "bodies", "large", "http", "garbage", "slow")
#: of all requests; the rest are bodies
_SHARES = {"schema": 0.2, "http": 0.2, "garbage": 0.13}
_SLOW, _LARGE_ROUNDS = 300, 3
_LIMIT_S = 120.0
_CLIENTS = 16
#: most memory of all HTTP workers together: so many large bodies at a time as there are clients for them, and what stays of it
_PEAK_MIB, _AFTER_MIB = 3072, 1024
_BAD_LINES = ("request.crashed", "control.crashed", "Error handling request", "Traceback", "WORKER TIMEOUT")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", nargs="+", choices=_PARTS, default=[], help="parts to leave out")
    parser.add_argument("--venv", type=Path, default=_ROOT / ".venv-hostile", help="schemathesis' environment")
    parser.add_argument("--install", action="store_true", help="make that environment where it is not there")


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One part after the other, against one server."""
    command = None
    if "schema" not in options.without:
        command = hostile_schema.program(options.venv, install=options.install)
    log = directory / "server.log" if str(options.log) == os.devnull else options.log
    seen = log.stat().st_size if log.exists() else 0
    secret = directory / "jwt-secret"
    secret.write_text(_KEY)
    environ = {
        "PADDLE_DS_API_KEY": _KEY,
        "PADDLE_DS_JWT_KEY_FILE": str(secret),
        "PADDLE_DS_JWT_AUDIENCE": "trial",
        "PADDLE_DS_FEEDBACK_DIR": str(directory),
    }
    with Server(directory, log, ["--max-context-tokens", "256"], environ) as server:
        trial = _Trial(server, options.seed)
        before, pids = now_bytes(server), _pids(server)
        answered = [trial.answers_well()]
        started_s = time.monotonic()
        with Peak(server) as peak:
            trial.all_parts(options, command, directory)
        seconds = time.monotonic() - started_s
        trial.take_requests_again()
        answered.append(trial.answers_well())
        same = pids == _pids(server)
        after = now_bytes(server)
    with log.open("rb") as file:
        file.seek(seen)
        written = file.read().decode("utf-8", "replace")
    bad_lines = {word: written.count(word) for word in _BAD_LINES if word in written}
    memory = {"before": mib(before), "peak": mib(peak.bytes), "after": mib(after)}
    bounded = memory["peak"].get("http", 0) <= _PEAK_MIB and memory["after"].get("http", 0) <= _AFTER_MIB
    return {
        "requests": sum(trial.sent.values()),
        "seed": options.seed,
        "seconds": round(seconds),
        "classes": {kind: trial.figures(kind) for kind in trial.sent},
        "slow_while_answered": trial.while_slow,
        "problems": trial.problems.most_common(40),
        "same_processes": same,
        "log": bad_lines,
        "memory_mib": memory,
        "answered_before_and_after": answered,
        "passed": not trial.problems and same and not bad_lines and bounded and all(answered),
    }


def _pids(server: Server) -> list[list[int]]:
    return [server.pids(what) for what in ("supervisor", "engine", "worker")]


class _Trial:
    """Counts what was sent, and what came back."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._seed = seed
        self._port = int(server.url.rpartition(":")[2])
        self._auth = {"Authorization": f"Bearer {_KEY}"}
        self.sent: Counter[str] = Counter()
        self.statuses: dict[str, Counter[str]] = {}
        self.slowest_s: dict[str, float] = {}
        self.problems: Counter[str] = Counter()
        self.while_slow: dict[str, Any] = {}

    def all_parts(self, options: argparse.Namespace, command: Path | None, directory: Path) -> None:
        """Those that were not left out, of about the size that was asked for."""
        total, key = options.requests, _KEY.encode()
        counts = {part: round(total * share) for part, share in _SHARES.items()}
        if command is not None:
            self._schema(command, counts["schema"], directory)
        small = max(1, round(_SLOW * total / 20_000))
        rounds = max(1, round(_LARGE_ROUNDS * total / 20_000))
        large = hostile_bodies.texts() * rounds
        if "slow" not in options.without:
            self._slow(small)
        if "large" not in options.without:
            self._exchange((Sent("large", hostile_http.request(key, *one)) for one in large), 4)
        if "http" not in options.without:
            self._exchange(hostile_bodies.examples(hostile_http.forms(key), counts["http"], self._seed))
        if "garbage" not in options.without:
            self._exchange(hostile_bodies.examples(hostile_http.garbage(key), counts["garbage"], self._seed))
        if "bodies" not in options.without:
            self._bodies(max(100, total - self.sent.total()))

    def figures(self, kind: str) -> dict[str, Any]:
        """Of one class."""
        statuses = dict(sorted(self.statuses[kind].items()))
        return {"sent": self.sent[kind], "statuses": statuses, "seconds_max": round(self.slowest_s.get(kind, 0.0), 2)}

    def answers_well(self) -> bool:
        """Whether an ordinary client gets the right answer."""
        body = {"messages": [{"role": "user", "content": "12+7"}], "temperature": 0}
        response = requests.post(f"{self._server.url}/v1/chat/completions", json=body, headers=self._auth, timeout=_LIMIT_S)
        return response.status_code == 200 and "19" in str(response.json()["choices"][0]["message"]["content"])

    def take_requests_again(self) -> None:
        """Where a body said to drain, and was valid."""
        requests.post(f"{self._server.url}/admin/drain", json={"enabled": False}, headers=self._auth, timeout=_LIMIT_S)

    def _schema(self, command: Path, count: int, directory: Path) -> None:
        found = hostile_schema.probe(command, self._server.url, _KEY, count, self._seed, directory)
        self.take_requests_again()
        self.sent["schema"] += found.statuses.total()
        self.statuses["schema"] = found.statuses
        for failure in found.failures:
            self.problems[f"schema: {failure}"] += 1
        if lost := found.statuses["no answer"]:
            self.problems["schema: no answer"] += lost
        if wrong := [status for status in found.statuses if status.startswith("5") and status != "503"]:
            self.problems[f"schema: {wrong}"] += 1

    def _bodies(self, count: int) -> None:
        """Three kinds; nine in ten with the key, the others without one or with one that is wrong."""
        keys = st.sampled_from([_KEY.encode()] * 27 + [b"", b"wrong", b"eyJhbGciOiJIUzI1NiJ9.e30.AAAA"])
        made = {
            "fields": (hostile_bodies.wrong_fields(), count - count // 2),
            "mutated": (hostile_bodies.mutated(), count // 4),
            "no JSON": (hostile_bodies.no_json(), count // 2 - count // 4),
        }
        for kind, (strategy, number) in made.items():
            drawn = hostile_bodies.examples(st.tuples(keys, strategy), number, self._seed)
            self._exchange(Sent(kind, hostile_http.request(key, path, body)) for key, (path, body) in drawn)
            self.take_requests_again()

    def _slow(self, count: int) -> None:
        with ThreadPoolExecutor(1) as pool, hostile_slow.Patient(self._server.url, self._auth) as patient:
            crawl = pool.submit(hostile_slow.crawl, self._port, _KEY.encode(), count, _LIMIT_S)
            found = crawl.result()
        self.sent["slow"] += count
        self.statuses["slow"] = found.outcomes
        self.slowest_s["slow"] = found.ended_s_max
        self.while_slow = {"answers": len(patient.seconds), "seconds_max": round(max(patient.seconds, default=0.0), 2)}
        for problem in [*found.problems, *(f"beside slow clients: {failure}" for failure in patient.failures)]:
            self.problems[f"slow: {problem}"] += 1
        if not patient.seconds:
            self.problems["slow: nobody else was answered"] += 1

    def _exchange(self, attempts: Iterable[Sent], clients: int = _CLIENTS) -> None:
        with ThreadPoolExecutor(clients) as pool:
            for sent, outcome in pool.map(lambda sent: (sent, exchange(self._port, sent, _LIMIT_S)), attempts):
                self._count(sent, outcome)

    def _count(self, sent: Sent, outcome: Outcome) -> None:
        kind = sent.kind
        self.sent[kind] += 1
        told = self.statuses.setdefault(kind, Counter())
        told.update(map(str, outcome.statuses))
        if not outcome.statuses:
            told["left" if sent.ending in ("close", "reset") else "closed"] += 1
        self.slowest_s[kind] = max(self.slowest_s.get(kind, 0.0), outcome.seconds)
        for problem in outcome.problems:
            self.problems[f"{kind}: {problem}: {sent.data[:300]!r}"] += 1


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md: one for all, then one a class."""
    memory = result["memory_mib"]
    total = (
        f"| {result['requests']} malformed or hostile requests | {sum(dict(result['problems']).values())} problems, "
        f"{'the same' if result['same_processes'] else 'other'} processes before and after, "
        f"{sum(result['log'].values())} tracebacks, HTTP workers {memory['before']['http']} → {memory['after']['http']} MiB "
        f"(peak {memory['peak']['http']}) |"
    )
    each = [
        f"| … {kind}: {part['sent']} | "
        + ", ".join(f"{status} × {count}" for status, count in part["statuses"].items())
        + (f"; the longest took {part['seconds_max']} s |" if part["seconds_max"] else " |")
        for kind, part in result["classes"].items()
    ]
    return [total, *each]
