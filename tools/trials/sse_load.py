"""Many open streams at the same time, slow readers among them, twice, and what memory they take."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import requests

from trials.memory import Peak, mib, now_bytes
from trials.probe import Probe
from trials.readers import Client, Pace, Readers
from trials.server import Server

HELP = "many open streams, slow readers among them"
#: refusals that the documents name; every other one fails the trial
_DOCUMENTED = ("503 server_overloaded", "429 rate_limit_exceeded")
_SLOW = ("slow", "pausing", "stopped")
_END = {"stopped": "cut off"}
#: the second of two equal loads may need so much more than the first
_MOST_GROWTH = 1.10
_NUM_QUESTIONS = 16
_ERRORS = "paddle_ds:request_errors_total{"
#: what freed memory takes to be given back, and the engine to forget
_SETTLE_S = 5.0
#: how much later than promised a stalled client may be cut off, on a machine that has a lot to do
_LATE_S = 30.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this trial."""
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=100, help="of these read slowly, pause, or stop reading; a third each")
    parser.add_argument("--tokens", type=int, default=400, help="tokens of each answer")
    parser.add_argument("--arrivals", type=float, default=400.0, help="new clients in a second")
    parser.add_argument("--write-timeout", type=float, default=20.0, help="PADDLE_DS_WRITE_TIMEOUT_S of the server")
    parser.add_argument("--runs", type=int, default=2, help="equal loads after each other; the first warms up")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a request counts as one that hangs")


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The same load several times on one server."""
    environ = {"PADDLE_DS_WRITE_TIMEOUT_S": str(options.write_timeout)}
    with Server(directory, options.log, environ=environ) as server:
        start = now_bytes(server)
        loads = [_load(server, options) for _ in range(options.runs)]
    first, last = loads[0], loads[-1]
    grown = max(last[when]["anonymous"] / first[when]["anonymous"] for when in ("peak_mib", "after_mib"))
    return {
        "start_mib": mib(start),
        "loads": loads,
        "growth": round(grown, 3),
        "passed": all(_passed(load) for load in loads) and grown < _MOST_GROWTH,
    }


def _load(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    clients = mixed(options.clients, options.slow, options.tokens)
    pace = Pace(options.arrivals, options.write_timeout / 2, options.write_timeout + _LATE_S, options.limit)
    num_gone = clients_gone(server.url) + sum(client.kind == "stopped" for client in clients)
    port = int(server.url.rpartition(":")[2])
    readers = Readers(port, clients, pace, lambda: clients_gone(server.url) >= num_gone)
    started_s = time.monotonic()
    with Peak(server) as peak, Probe(server.url) as probe:
        asyncio.run(readers.run())
    seconds = time.monotonic() - started_s
    time.sleep(_SETTLE_S)
    texts: dict[str, Counter[str]] = {}
    for client in clients:
        if client.outcome == "ok":
            texts.setdefault(str(client.body["messages"]), Counter())[client.answer.text] += 1
    return {
        "seconds": round(seconds, 1),
        "outcomes": readers.outcomes,
        "open_max": readers.num_open_max,
        "engine_requests_max": probe.num_requests_max,
        "health_s_max": round(max(probe.seconds), 2),
        "health_failures": probe.failures,
        "tokens": sum(client.answer.num_tokens for client in clients),
        # greedy answers to the same question are the same, or something was lost or mixed up on the way
        "different_texts": sum(len(counted) - 1 for counted in texts.values()),
        "peak_mib": mib(peak.bytes),
        "after_mib": mib(now_bytes(server)),
    }


def clients_gone(url: str) -> int:
    """Requests that ended because their clients went away or were given up, as the server counts them."""
    lines = requests.get(f"{url}/metrics", timeout=_LATE_S).text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(_ERRORS) and 'code="client_gone"' in line)


def mixed(num_clients: int, num_slow: int, num_tokens: int) -> list[Client]:
    """Clients of all kinds; the slow ones come evenly between the others."""
    every = num_clients / max(num_slow, 1)
    slow = {int(number * every): _SLOW[number % len(_SLOW)] for number in range(num_slow)}
    return [
        Client(slow.get(number, "prompt"), body(number, num_tokens, number in slow), keeps_alive=number % 2 == 0)
        for number in range(num_clients)
    ]


def body(number: int, num_tokens: int, is_large: bool) -> dict[str, Any]:
    """A request. The answer is as long as asked for; a large one has more bytes than the kernel keeps for a client."""
    question = number % _NUM_QUESTIONS
    return {
        "messages": [{"role": "user", "content": f"{question}+7"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "ignore_eos": True,
        "max_tokens": num_tokens,
        **({"logprobs": True, "top_logprobs": 20} if is_large else {}),
    }


def _passed(load: dict[str, Any]) -> bool:
    # those who read nothing are given up by the server, all others are not
    ends = all(set(seen) <= {_END.get(kind, "ok"), *_DOCUMENTED} for kind, seen in load["outcomes"].items())
    return ends and load["different_texts"] == 0 and not load["health_failures"]


def rows(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Rows of the table in docs/reliability.md."""
    load = result["loads"][-1]
    what = f"{options.clients} open streams at once, {options.slow} of them slow, {options.tokens} tokens each"
    peak = ", ".join(f"{name} {size}" for name, size in load["peak_mib"].items())
    told = f"{load['outcomes']}; {load['open_max']} open at once; `/health` within {load['health_s_max']} s"
    memory = f"PSS at most {peak} MiB, {load['after_mib']['all']} after; second load by the first: {result['growth']}"
    return [f"| {what} | {told}; {memory} |"]
