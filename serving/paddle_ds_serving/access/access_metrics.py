"""Metrics of access. Their labels are ids of the keys in the file, of which there are few; all tokens count as ``jwt``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from paddle_ds_serving.engine_metrics import PREFIX


class AccessMetrics:
    """The instruments."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.refused = Counter(
            f"{PREFIX}access_refused", "Requests refused for their key, its scopes or its quota.", ("code",), registry=registry
        )
        self.key_requests = Counter(f"{PREFIX}key_requests", "Requests let in.", ("key",), registry=registry)
        self.key_tokens = Counter(f"{PREFIX}key_tokens", "Tokens of prompts and answers.", ("key",), registry=registry)
        self.redis_up = Gauge(
            f"{PREFIX}redis_up",
            "1 while quotas are shared through Redis; 0 while each server counts for itself.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.cache_queries = Counter(
            f"{PREFIX}response_cache_queries", "Deterministic requests looked up in the response cache.", registry=registry
        )
        self.cache_hits = Counter(f"{PREFIX}response_cache_hits", "Requests answered from the response cache.", registry=registry)
