"""Metrics of access. Their labels are ids of the keys in the file, of which there are few; all tokens count as ``jwt``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

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
        self.redis_up = Gauge(
            f"{PREFIX}redis_up",
            "1 while quotas are shared through Redis; 0 while this server counts for itself, also where it has no Redis.",
            registry=registry,
            multiprocess_mode="livemin",
        )
