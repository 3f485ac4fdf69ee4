"""Puts access in front of an application's routes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from flask import Flask, Response, g, request

from paddle_ds.errors import PaddleDSError
from paddle_ds.settings import Settings
from paddle_ds_serving.access.access_metrics import AccessMetrics, RedisUp
from paddle_ds_serving.access.answer_store import AnswerStore, LocalAnswers, RedisAnswers
from paddle_ds_serving.access.errors import InvalidApiKey, PermissionDenied, RateLimitExceeded
from paddle_ds_serving.access.guard import Guard, challenge
from paddle_ds_serving.access.keys import Principal
from paddle_ds_serving.access.limits import FallbackStore, SqliteStore, Store
from paddle_ds_serving.access.quota import Quota, Settle, most_tokens
from paddle_ds_serving.access.redis_store import RedisStore, connect
from paddle_ds_serving.access.response_cache import CachedEngine, weights_of
from paddle_ds_serving.access.scopes import Scope, scope_of
from paddle_ds_serving.http_errors import error_response
from paddle_ds_serving.metrics import Metrics

if TYPE_CHECKING:
    from paddle_ds_serving.generation import Order
    from paddle_ds_serving.service import Served, Service

_FILE_NAME = "limits.sqlite"


def install(app: Flask, service: Service) -> None:
    """Check every request before its route runs, and count what it uses.

    Raises:
        ConfigError: keys are configured, and cannot be used.
    """
    settings = service.settings
    guard, metrics = Guard(settings), AccessMetrics(service.metrics.registry)
    client = None if settings.redis_url is None else connect(settings.redis_url)
    quota = Quota(_store(settings, client, service.metrics))
    service.reserve = _reserver(quota, metrics)
    if settings.response_cache_s > 0:
        answers = _answers(settings.response_cache_s, client)
        service.engine_of = lambda served: CachedEngine(served.engine, weights_of(served), answers, metrics)
    _install_errors(app)

    @app.before_request
    def let_in() -> None:
        rule = request.url_rule.rule if request.url_rule is not None else None
        g.principal = None
        principal = guard.check(rule, request.headers.get)
        if principal is None:
            return
        g.principal = principal
        g.record.key_id = principal.id
        if rule is not None and scope_of(rule) is Scope.INFER:
            quota.count_request(principal)
        metrics.key_requests.labels(principal.label).inc()

    @app.after_request
    def say_where_from(response: Response) -> Response:
        if "x_cache" in g:  # set by the response cache, where it was asked
            response.headers["x-cache"] = g.x_cache
        return response


def _store(settings: Settings, client: redis.Redis | None, metrics: Metrics) -> Store:
    """Buckets of one server lie beside its engine's socket, in a directory that is made and removed with it."""
    path = None if settings.engine_socket is None else Path(settings.engine_socket).parent / _FILE_NAME
    local: Store = SqliteStore(None) if path is None else FallbackStore("file", SqliteStore(path), SqliteStore(None))
    if client is None:
        metrics.collect_also(RedisUp(lambda: False))
        return local
    store = FallbackStore("redis", RedisStore(client), local)
    metrics.collect_also(RedisUp(store.look))
    return store


def _answers(keep_s: float, client: redis.Redis | None) -> AnswerStore:
    return LocalAnswers(keep_s) if client is None else RedisAnswers(client, keep_s)


def _reserver(quota: Quota, metrics: AccessMetrics) -> Callable[[Order, Served], Settle]:
    def reserve(order: Order, served: Served) -> Settle:
        principal: Principal | None = g.principal
        if principal is None:
            return lambda num_used: None
        settle = quota.reserve(principal, most_tokens(order, served.model.max_context_tokens))
        label = principal.label

        def ended(num_used: int) -> None:
            settle(num_used)
            metrics.key_tokens.labels(label).inc(num_used)

        return ended

    return reserve


def _install_errors(app: Flask) -> None:
    def refuse(error: PaddleDSError) -> Response:
        g.record.failed(error.info())
        return error_response(error.info())

    @app.errorhandler(InvalidApiKey)
    @app.errorhandler(PermissionDenied)
    def not_allowed(error: InvalidApiKey | PermissionDenied) -> Response:
        response = refuse(error)
        response.headers.update(challenge(error, bool(request.headers.get("authorization") or request.headers.get("x-api-key"))))
        return response

    @app.errorhandler(RateLimitExceeded)
    def too_much(error: RateLimitExceeded) -> Response:
        response = refuse(error)
        response.headers["retry-after"] = str(math.ceil(error.retry_after_s))
        response.headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
        return response
