"""Load an OpenAI-compatible server and measure what its clients see. Any server will do; nothing here knows ours."""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import statistics
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from paddle_ds.errors import ConfigError

#: what is asked where no file of conversations is given
_SUMS = tuple(f"What is {a} plus {b}?" for a in range(11, 30) for b in range(3, 60, 4))
_TIMEOUT_S = 600.0


@dataclasses.dataclass(frozen=True)
class Load:
    """What is sent. Either ``concurrency`` requests are kept under way, or ``request_rate_per_s`` arrive at random (Poisson)."""

    url: str
    model: str
    num_requests: int
    concurrency: int
    request_rate_per_s: float | None
    max_tokens: int
    ignore_eos: bool
    seed: int = 0


@dataclasses.dataclass
class Outcome:
    """One request as its client saw it. Times in seconds since it was sent."""

    first_token_s: float = 0.0
    total_s: float = 0.0
    gaps_s: list[float] = dataclasses.field(default_factory=list)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str = ""


def conversations(path: Path | None) -> list[str]:
    """First human turns of a ShareGPT-layout file (a list of ``{"conversations": [{"from", "value"}]}``), or small sums.

    Raises:
        ConfigError: the file cannot be read or has another layout.
    """
    if path is None:
        return list(_SUMS)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        turns = [turn["value"] for entry in entries for turn in entry["conversations"][:1] if turn["from"] in ("human", "user")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a ShareGPT-layout JSON file: {error!r}") from error
    if not turns:
        raise ConfigError(f"{path}: holds no conversation that begins with a human turn")
    return [str(turn) for turn in turns]


def run(load: Load, prompts: Sequence[str]) -> dict[str, Any]:
    """Send the load and summarise it: percentiles in milliseconds, rates a second."""
    chosen = random.Random(load.seed)
    texts = [chosen.choice(prompts) for _ in range(load.num_requests)]
    started = time.perf_counter()
    if load.request_rate_per_s is None:
        with ThreadPoolExecutor(load.concurrency) as pool:
            outcomes = list(pool.map(lambda text: ask(load, text), texts))
    else:
        outcomes = _arrive(load, texts, chosen)
    return summary(load, outcomes, time.perf_counter() - started)


def _arrive(load: Load, texts: list[str], chosen: random.Random) -> list[Outcome]:
    outcomes: list[Outcome] = []
    threads = []
    assert load.request_rate_per_s is not None
    for text in texts:
        thread = threading.Thread(target=lambda text=text: outcomes.append(ask(load, text)))
        thread.start()
        threads.append(thread)
        time.sleep(chosen.expovariate(load.request_rate_per_s))
    for thread in threads:
        thread.join()
    return outcomes


def ask(load: Load, text: str) -> Outcome:
    """Stream one chat. A failure is an outcome, not an exception."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= {"model": load.model} if load.model else {}
    body |= {"ignore_eos": True} if load.ignore_eos else {}
    outcome = Outcome()
    started = last = time.perf_counter()
    try:
        for event in _events(load.url, body):
            now = time.perf_counter()
            if "error" in event:
                outcome.error = str(event["error"].get("code") or event["error"].get("message"))
            usage = event.get("usage")
            if usage:
                outcome.num_prompt_tokens, outcome.num_output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            if not _has_text(event):
                continue
            if outcome.first_token_s == 0:
                outcome.first_token_s = now - started
            else:
                outcome.gaps_s.append(now - last)
            last = now
    except (OSError, http.client.HTTPException, ValueError) as error:
        outcome.error = repr(error)
    outcome.total_s = time.perf_counter() - started
    return outcome


def _has_text(event: dict[str, Any]) -> bool:
    deltas = [choice.get("delta", {}) for choice in event.get("choices", [])]
    return any(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") for delta in deltas)


def _events(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=_TIMEOUT_S)
    try:
        path = f"{parts.path.rstrip('/')}/v1/chat/completions"
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(300)!r}")
        for line in response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line[6:])
    finally:
        connection.close()


def summary(load: Load, outcomes: Sequence[Outcome], elapsed_s: float) -> dict[str, Any]:
    """Figures of a run, failures apart."""
    good = [outcome for outcome in outcomes if not outcome.error]
    errors: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.error:
            errors[outcome.error] = errors.get(outcome.error, 0) + 1
    return {
        **dataclasses.asdict(load),
        "elapsed_s": round(elapsed_s, 3),
        "num_ok": len(good),
        "errors": errors,
        "prompt_tokens_mean": _mean([outcome.num_prompt_tokens for outcome in good]),
        "output_tokens_mean": _mean([outcome.num_output_tokens for outcome in good]),
        "output_tokens_per_s": round(sum(outcome.num_output_tokens for outcome in good) / elapsed_s, 2),
        "requests_per_s": round(len(good) / elapsed_s, 3),
        "ttft_ms": percentiles([outcome.first_token_s for outcome in good]),
        "itl_ms": percentiles([gap for outcome in good for gap in outcome.gaps_s]),
        "e2e_ms": percentiles([outcome.total_s for outcome in good]),
    }


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 2) if values else 0.0


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p90, p99 and the largest, in milliseconds; nothing where there is nothing."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    points = {f"p{p}": ordered[min(len(ordered) - 1, round(p / 100 * (len(ordered) - 1)))] for p in (50, 90, 99)}
    return {
        name: round(1000 * value, 2) for name, value in {"mean": statistics.fmean(ordered), **points, "max": ordered[-1]}.items()
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the percentiles of a run as bars.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.5))
    for axis, key, title in zip(
        axes, ("ttft_ms", "itl_ms", "e2e_ms"), ("first token", "between tokens", "whole answer"), strict=True
    ):
        axis.bar(list(result[key]), list(result[key].values()))
        axis.set_title(f"{title}, ms")
    figure.suptitle(f"{result['output_tokens_per_s']} output tokens/s, {result['num_ok']} of {result['num_requests']} requests")
    figure.tight_layout()
    figure.savefig(path)
