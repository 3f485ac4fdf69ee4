"""What is known of one HTTP request, and its one log line: no text of an answer, and of a prompt only where asked for."""

from __future__ import annotations

import dataclasses
import logging
import re
import secrets
import time

from flask import Flask, Response, g, request

from paddle_ds.errors import ErrorInfo, PaddleDSError
from paddle_ds.logs import fields
from paddle_ds_serving.metrics import Metrics

_log = logging.getLogger(__name__)

#: inbound ``x-request-id`` values that are taken over; anything else could break log lines
_SANE_ID = re.compile(r"^[A-Za-z0-9._:/+=@-]{1,128}$")
#: routes that probes and scrapers call all the time: logged at debug only
_QUIET = ("/health", "/v2/health", "/metrics")


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
    first_token_s: float | None = None
    finish_reasons: str | None = None
    #: who asked: the id of a key, never the key
    key_id: str | None = None
    error_code: str | None = None
    error_type: str | None = None
    #: what the model was given; only with ``PADDLE_DS_LOG_PROMPTS``
    prompts: list[str] | None = None
    closed: bool = False

    def failed(self, info: ErrorInfo) -> None:
        """Note an error, also one inside a stream whose status was sent before."""
        self.error_code = info.code
        self.error_type = info.type

    def close(self, metrics: Metrics) -> None:
        """Count the request and write its line; further calls do nothing."""
        if self.closed:
            return
        self.closed = True
        metrics.http_requests.labels(self.method, self.route, str(self.status)).inc()
        if self.error_code is not None:
            metrics.request_errors.labels(self.error_type or PaddleDSError.type, self.error_code).inc()
        hidden = {"started_s", "closed", "route"}
        known = {key: value for key, value in vars(self).items() if value is not None and key not in hidden}
        total_s = round(time.perf_counter() - self.started_s, 4)
        level = logging.DEBUG if self.route.startswith(_QUIET) and self.status < 400 else logging.INFO
        _log.log(level, "http.request", extra=fields(**known, total_s=total_s))


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
