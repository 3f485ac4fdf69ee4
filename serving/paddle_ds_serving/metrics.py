"""Metrics of the HTTP workers, under the names that dashboards for vLLM and FastDeploy use, prefixed ``paddle_ds:``.

    worker 1 ── mmap file ──┐
    worker 2 ── mmap file ──┼── MultiProcessCollector ──┐
    worker N ── mmap file ──┘                           ├── GET /metrics
    engine   ── Stats frame, once a second, to each ────┤
    files    ── restarts, memory limit, passport ───────┘

Latencies are counted where they are felt, in the worker that answers, and are summed over the workers at scrape time. The
engine's own gauges and counters come from its last ``Stats`` frame, so they are exact however many workers run.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.registry import Collector

from paddle_ds.errors import ErrorInfo
from paddle_ds.ipc.messages import Usage
from paddle_ds_serving.engine import EngineClient
from paddle_ds_serving.engine_metrics import PREFIX, EngineCollector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The instruments of one application."""

    def __init__(self, engine: EngineClient) -> None:
        self._collectors: list[Collector] = [EngineCollector(engine)]
        self._registry = CollectorRegistry()
        self.http_requests = Counter(
            f"{PREFIX}http_requests", "HTTP responses.", ("method", "route", "status"), registry=self._registry
        )
        self.request_success = Counter(
            f"{PREFIX}request_success", "Answers that ended well.", ("finished_reason",), registry=self._registry
        )
        self.request_errors = Counter(
            f"{PREFIX}request_errors",
            "Requests that ended in an error, also inside a stream whose status was 200.",
            ("type", "code"),
            registry=self._registry,
        )
        self.feedback = Counter(f"{PREFIX}feedback", "Ratings of answers that users sent.", ("verdict",), registry=self._registry)
        self.circuit_openings = Counter(
            f"{PREFIX}circuit_openings",
            "Times that requests were held back because too many had failed.",
            registry=self._registry,
        )
        self.prefix_cache_queries = Counter(
            f"{PREFIX}prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", registry=self._registry
        )
        self.prefix_cache_hits = Counter(
            f"{PREFIX}prefix_cache_hits", "Prompt tokens found in the prefix cache.", registry=self._registry
        )
        self.time_to_first_token = self._seconds("time_to_first_token", "From the arrival of a request to its first token.")
        self.inter_token_latency = self._seconds("inter_token_latency", "Between two tokens of an answer.", _TOKEN_SECONDS)
        self.time_per_output_token = self._seconds(
            "time_per_output_token", "Mean time of an answer's tokens after the first.", _TOKEN_SECONDS
        )
        self.e2e_request_latency = self._seconds("e2e_request_latency", "From the arrival of a request to the end of an answer.")
        self.request_queue_time = self._seconds("request_queue_time", "Waiting in the engine before the first step.")
        self.request_prefill_time = self._seconds("request_prefill_time", "From the first step to the first token.")
        self.request_decode_time = self._seconds("request_decode_time", "From the first token to the last.")
        self.request_inference_time = self._seconds("request_inference_time", "From the first step to the last token.")

    @property
    def registry(self) -> CollectorRegistry:
        """For instruments of other parts of the application."""
        return self._registry

    def _seconds(self, name: str, meaning: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"{PREFIX}{name}_seconds", meaning, buckets=buckets, registry=self._registry)

    def collect_also(self, collector: Collector) -> None:
        """Add figures that are the same in every worker and are read at each scrape."""
        self._collectors.append(collector)

    def request_refused(self, info: ErrorInfo) -> None:
        """Count a request that was refused before its method and path were known."""
        self.http_requests.labels("unknown", "unmatched", str(info.http_status)).inc()
        self.request_errors.labels(info.type, info.code).inc()

    def answer_finished(self, reason: str, usage: Usage | None, e2e_s: float) -> None:
        """Count an answer. ``usage`` is absent where a stop string ended it before the engine did."""
        self.request_success.labels(reason).inc()
        self.e2e_request_latency.observe(e2e_s)
        if usage is None:
            return
        self.prefix_cache_queries.inc(usage.num_prompt_tokens)
        self.prefix_cache_hits.inc(usage.num_cached_tokens)
        decode_s = max(usage.total_s - usage.first_token_s, 0.0)
        self.request_queue_time.observe(usage.queue_s)
        self.request_prefill_time.observe(max(usage.first_token_s - usage.queue_s, 0.0))
        self.request_decode_time.observe(decode_s)
        self.request_inference_time.observe(max(usage.total_s - usage.queue_s, 0.0))
        if usage.num_output_tokens > 1:
            self.time_per_output_token.observe(decode_s / (usage.num_output_tokens - 1))

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes: this application's instruments over all workers, and the engine's."""
        shared = CollectorRegistry()
        for collector in self._collectors:
            shared.register(collector)
        workers = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            workers = CollectorRegistry()
            multiprocess.MultiProcessCollector(workers)  # type: ignore[no-untyped-call]
        return generate_latest(workers) + generate_latest(shared)
