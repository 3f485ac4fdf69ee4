"""Metrics of access. Their labels are ids of the keys in the file, of which there are few; all tokens count as ``jwt``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from paddle_ds_serving.engine_metrics import PREFIX


class AccessMetrics:
    """The instruments."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.key_requests = Counter(f"{PREFIX}key_requests", "Requests let in.", ("key",), registry=registry)
        self.key_tokens = Counter(f"{PREFIX}key_tokens", "Tokens of prompts and answers.", ("key",), registry=registry)
        self.cache_queries = Counter(
            f"{PREFIX}response_cache_queries", "Deterministic requests looked up in the response cache.", registry=registry
        )
        self.cache_hits = Counter(f"{PREFIX}response_cache_hits", "Requests answered from the response cache.", registry=registry)


class RedisUp(Collector):
    """``redis_up``, found out at each scrape: a server without limited requests learns of it, too.

    A Redis that does not answer holds up a scrape for a second.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look

    def describe(self) -> Iterable[Metric]:
        """Registering it asks nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Called once a scrape."""
        meaning = "1 while quotas are shared through Redis; 0 while this server counts for itself, also where it has no Redis."
        yield GaugeMetricFamily(f"{PREFIX}redis_up", meaning, float(self._look()))
