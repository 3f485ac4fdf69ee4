"""What is known of one HTTP request, and its one log line: no text of an answer, and of a prompt only where asked for."""

from __future__ import annotations

import dataclasses
import logging
import re
import secrets
import time
from collections.abc import Callable

from flask import Flask, Response, g, request

from paddle_ds.errors import ErrorInfo, PaddleDSError
from paddle_ds.ipc.messages import ModelInfo, Usage
from paddle_ds.logs import fields
from paddle_ds_serving.metrics import Metrics

_log = logging.getLogger(__name__)

#: inbound ``x-request-id`` values that are taken over; anything else could break log lines
_SANE_ID = re.compile(r"^[A-Za-z0-9._:/+=@-]{1,128}$")
#: routes that probes and scrapers call all the time: logged at debug only, and not traced
QUIET = ("/health", "/v2/health", "/metrics")
#: methods that metrics tell apart; clients can make up any number of others
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
#: fields of a record that are no fields of its line
_HIDDEN = {"started_s", "submitted_s", "ended_s", "usages", "closed", "route", "model", "error_http_status", "on_close"}


@dataclasses.dataclass
class RequestRecord:
    """Filled while the request runs; written by :meth:`close`."""

    request_id: str
    method: str
    route: str
    path: str
    started_s: float
    status: int = 0
    response_id: str | None = None
    stream: bool | None = None
    num_choices: int | None = None
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    num_cached_tokens: int | None = None
    #: seconds after the start, when the engine had the request
    submitted_s: float | None = None
    #: seconds after the start, when the first token of any answer was here
    first_token_s: float | None = None
    #: seconds after the start, when the last answer had ended, well or not
    ended_s: float | None = None
    finish_reasons: str | None = None
    #: who asked: the id of a key, never the key
    key_id: str | None = None
    error_code: str | None = None
    error_type: str | None = None
    #: what the error would have as a status, also where another was sent before
    error_http_status: int | None = None
    #: what the engine has told of answers that it has ended
    usages: list[Usage] | None = None
    #: the model that answers
    model: ModelInfo | None = None
    #: names the trace that the request is part of; only with ``PADDLE_DS_TRACING``
    trace_id: str | None = None
    #: what the model was given; only with ``PADDLE_DS_LOG_PROMPTS``
    prompts: list[str] | None = None
    closed: bool = False
    #: told once, after all else is known
    on_close: Callable[[RequestRecord], None] | None = None

    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self.started_s

    def failed(self, info: ErrorInfo) -> None:
        """Note an error, also one inside a stream whose status was sent before."""
        self.error_code = info.code
        self.error_type = info.type
        self.error_http_status = info.http_status

    def close(self, metrics: Metrics) -> None:
        """Count the request and write its line; further calls do nothing."""
        if self.closed:
            return
        self.closed = True
        method = self.method if self.method in _METHODS else "other"
        metrics.http_requests.labels(method, self.route, str(self.status)).inc()
        if self.error_code is not None:
            metrics.request_errors.labels(self.error_type or PaddleDSError.type, self.error_code).inc()
        known = {key: value for key, value in vars(self).items() if value is not None and key not in _HIDDEN}
        total_s = round(self.elapsed_s(), 4)
        level = logging.DEBUG if self.route.startswith(QUIET) and self.status < 400 else logging.INFO
        _log.log(level, "http.request", extra=fields(**known, total_s=total_s))
        if self.on_close is not None:
            self.on_close(self)


def install(app: Flask, metrics: Metrics) -> None:
    """Give every request a record in ``flask.g.record`` and every response its ``x-request-id``."""

    @app.before_request
    def open_record() -> None:
        inbound = request.headers.get("x-request-id", "")
        request_id = inbound if _SANE_ID.match(inbound) else f"req_{secrets.token_hex(12)}"
        route = request.url_rule.rule if request.url_rule is not None else "unmatched"
        path = request.path if request.url_rule is not None else "unmatched"
        g.record = RequestRecord(request_id, request.method, route, path, time.perf_counter())

    @app.after_request
    def mark_response(response: Response) -> Response:
        record: RequestRecord = g.record
        record.status = response.status_code
        response.headers["x-request-id"] = record.request_id
        if g.get("weight_version"):  # set by Service.served(): the model that this request has looked at
            response.headers["x-weight-version"] = g.weight_version
        response.call_on_close(lambda: record.close(metrics))
        return response
