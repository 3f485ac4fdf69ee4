"""The engine's gauges and counters, read from its last frames when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from paddle_ds.ipc.messages import ModelInfo, Stats
from paddle_ds_serving.engine import EngineClient

PREFIX = "paddle_ds:"


class EngineCollector(Collector):
    """Yields nothing that the engine has not said: a missing frame is a missing metric, not a zero."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Called once a scrape."""
        info, stats = self._engine.info, self._engine.stats
        ready = self._engine.connected and info is not None and info.state == "ready"
        yield GaugeMetricFamily(f"{PREFIX}engine_ready", "1 while the engine takes requests.", float(ready))
        if info is not None and info.model is not None:
            yield from _of_model(info.model)
        if stats is not None and self._engine.connected:
            yield from _of_stats(stats)


def _of_model(model: ModelInfo) -> Iterator[Metric]:
    yield GaugeMetricFamily(f"{PREFIX}load_seconds", "Time the checkpoint took to load.", model.load_s)
    weights = GaugeMetricFamily(f"{PREFIX}weight_bytes", "Bytes of weights in memory.", labels=("dtype",))
    for dtype, num_bytes in model.weight_bytes.items():
        weights.add_metric((dtype,), num_bytes)
    yield weights


def _of_stats(stats: Stats) -> Iterator[Metric]:
    used = 1.0 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
    for name, meaning, value in (
        ("num_requests_running", "Requests that are computed.", stats.num_running),
        ("num_requests_waiting", "Requests that wait.", stats.num_waiting),
        ("kv_cache_usage_perc", "Share of KV cache blocks in use, 0 to 1.", used),
        ("rss_bytes", "Resident memory of the engine process.", stats.rss_bytes),
        ("step_token_limit", "Tokens that a step may have now.", stats.step_token_limit),
    ):
        yield GaugeMetricFamily(PREFIX + name, meaning, float(value))
    for name, meaning, value in (
        ("prompt_tokens", "Prompt tokens taken in.", stats.prompt_tokens_total),
        ("generation_tokens", "Tokens generated.", stats.generation_tokens_total),
        ("engine_steps", "Steps of the engine.", stats.steps_total),
        ("shrunk_steps", "Steps computed again in smaller ones for want of memory.", stats.shrunk_steps_total),
        ("num_preemptions", "Requests put back for want of KV cache blocks.", stats.preemptions_total),
        ("bad_frames", "Messages to the engine that could be neither read nor answered.", stats.bad_frames_total),
    ):
        yield CounterMetricFamily(PREFIX + name, meaning, float(value))
    for name, figure in stats.device_metrics.items():
        yield GaugeMetricFamily(f"{PREFIX}device_{name}", "As the device, or its monitoring command, tells it.", figure)
    fallbacks = CounterMetricFamily(
        f"{PREFIX}fallback_ops", "Calls of an operator that ran its fallback.", labels=("op", "device")
    )
    for key, count in stats.fallback_ops.items():
        op, _, device = key.partition("@")  # "int8_gemm@cpu"
        fallbacks.add_metric((op, device), count)
    yield fallbacks
