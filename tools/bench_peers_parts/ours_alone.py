"""Figures of Paddle-DS that have a limit and no peer: gaps between tokens, time to the first one, memory."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from .install import Places
from .models import Models
from .servers import Server, ours
from .shell import StepFailed, end_family

ARRIVAL_TOKENS = 2048
KV_TOKENS = 4096
_NUM_ARRIVALS = 4
#: tokens that the stream gets in peace before each arrival
_QUIET_TOKENS = 64


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def gap_figures(times_s: Sequence[float], windows_s: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Gaps between the tokens of a stream, in ms. ``windows_s``: from the sending of each long prompt to its answer.

    Raises:
        StepFailed: too few tokens came for a p99.
    """
    gaps = [(end_s, 1000 * (end_s - start_s)) for start_s, end_s in itertools.pairwise(times_s)]
    during = [gap for end_s, gap in gaps if any(first_s < end_s <= last_s for first_s, last_s in windows_s)]
    quiet = [gap for end_s, gap in gaps if not any(first_s < end_s <= last_s for first_s, last_s in windows_s)]
    if len(gaps) < 100 or not during or not quiet:
        raise StepFailed(f"itl: {len(gaps)} gaps, {len(during)} of them while a prompt arrived: too few")
    every = [gap for _, gap in gaps]
    figures = {
        "p99_ms": quantile(every, 0.99),
        "median_ms": statistics.median(every),
        "max_ms": max(every),
        "quiet_median_ms": statistics.median(quiet),
        "during_median_ms": statistics.median(during),
        "during_p99_ms": quantile(during, 0.99),
    }
    figures["ratio"] = figures["p99_ms"] / figures["median_ms"]
    figures["during_p99_over_quiet_median"] = figures["during_p99_ms"] / figures["quiet_median_ms"]
    return {name: round(value, 2) for name, value in figures.items()} | {"num_gaps": len(gaps), "num_gaps_during": len(during)}


def itl(places: Places, models: Models, threads: int, id_limit: int) -> dict[str, Any]:
    """One running stream while long prompts come, one after the other, with peace between them."""
    chosen = random.Random(0)
    with ours(places, threads, models.w8a8, "--kv-tokens", "8192", "--max-context-tokens", "4096") as server:
        stream = _Stream(server, [chosen.randrange(id_limit) for _ in range(32)])
        windows_s, answers_s = [], []
        stream.wait_for(_QUIET_TOKENS)
        for _ in range(_NUM_ARRIVALS):
            prompt = [chosen.randrange(id_limit) for _ in range(ARRIVAL_TOKENS)]
            started_s = time.perf_counter()
            server.post("/v1/completions", {"prompt": prompt, "max_tokens": 1, "temperature": 0})
            windows_s.append((started_s, time.perf_counter()))
            answers_s.append(round(windows_s[-1][1] - started_s, 2))
            stream.wait_for(_QUIET_TOKENS)
        figures = gap_figures(stream.end(), windows_s)
    print(f"  {figures}", flush=True)
    return {**figures, "arrival_answer_s": answers_s}


class _Stream:
    """A streamed completion read in a thread; the time at which each token came."""

    def __init__(self, server: Server, prompt: list[int]) -> None:
        self._times_s: list[float] = []
        self._error: Exception | None = None
        self._leave = threading.Event()
        # token ids, so that a token without text of its own makes an event, too
        self._body = {"prompt": prompt, "max_tokens": 3500, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        self._thread = threading.Thread(target=self._read, args=(server,), daemon=True)
        self._thread.start()

    def wait_for(self, num_more: int) -> None:
        """Until so many more tokens have come."""
        wanted = len(self._times_s) + num_more
        while len(self._times_s) < wanted:
            if not self._thread.is_alive():
                raise StepFailed(f"itl: the stream ended early: {self._error or 'no error'}")
            time.sleep(0.005)

    def end(self) -> list[float]:
        """Leave the stream."""
        self._leave.set()
        self._thread.join(timeout=30)
        return self._times_s

    def _read(self, server: Server) -> None:
        try:
            for event in server.events("/v1/completions", self._body):
                now_s = time.perf_counter()
                if any(choice.get("token_ids") for choice in event.get("choices", [])):
                    self._times_s.append(now_s)
                if self._leave.is_set():
                    return
        except Exception as error:
            self._error = error


def first_token(models: Models, threads: int, num_rounds: int) -> dict[str, Any]:
    """Seconds from the start of Python to the first token of a W8A8 checkpoint, whose files are in the page cache.

    Raises:
        StepFailed: the command failed.
    """
    command = [sys.executable, "-m", "paddle_ds", "generate", "--raw", "--max-tokens", "1", "--num-threads", str(threads)]
    command += ["--model", str(models.w8a8), "Once"]
    seconds = []
    for number in range(num_rounds + 1):  # the first one warms the page cache and builds operators
        started_s = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        try:
            assert process.stdout is not None
            first = os.read(process.stdout.fileno(), 1)  # written when the one token is there
            elapsed_s = time.perf_counter() - started_s
            _, complaint = process.communicate()
        finally:
            end_family(process, grace_s=2)
        if process.returncode != 0 or not first:
            raise StepFailed(f"load: status {process.returncode}: {complaint.decode(errors='replace').strip()[-300:]}")
        if number:
            seconds.append(round(elapsed_s, 2))
    print(f"  {seconds} s", flush=True)
    return {"first_token_s": seconds}


def memory(places: Places, models: Models, threads: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Most resident memory of the serving engine's process with a KV cache of ``KV_TOKENS`` tokens, all of them in use."""
    chosen = random.Random(1)
    prompt = [chosen.randrange(facts["id_limit"]) for _ in range(KV_TOKENS - 32)]
    body = {"prompt": prompt, "max_tokens": 32, "temperature": 0, "ignore_eos": True}
    limits = ("--kv-tokens", str(KV_TOKENS), "--max-context-tokens", str(KV_TOKENS))
    with ours(places, threads, models.w8a8, *limits) as server:
        loaded_bytes = server.peak_rss_bytes()
        usage = server.post("/v1/completions", body)["usage"]
        peak_bytes = server.peak_rss_bytes()
    figures = {"peak_bytes": peak_bytes, "after_load_bytes": loaded_bytes, "int8_bytes": facts["int8_bytes"]}
    print(f"  {figures}", flush=True)
    return {**figures, "kv_tokens_used": usage["total_tokens"]}
