"""The one place where errors become HTTP responses, in OpenAI's error object."""

from __future__ import annotations

import logging
import math

import msgspec
from flask import Flask, Response, g
from werkzeug.exceptions import HTTPException

from paddle_ds.errors import ErrorInfo, InternalError, PaddleDSError
from paddle_ds.logs import fields

_log = logging.getLogger(__name__)

#: seconds after which a client may try again, by error code
RETRY_AFTER_S = {"engine_unavailable": 2.0, "engine_died": 2.0, "server_overloaded": 0.5, "circuit_open": 5.0}

#: of a message; what a request says is repeated so far, and no further
MAX_MESSAGE_CHARACTERS = 2000
_MAX_PARAM_CHARACTERS = 200

_HTTP_CODES = {
    400: ("invalid_request_error", "bad_request"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
}


class ClientGone(PaddleDSError):
    """The client closed its connection. Nobody reads the response; the status is for the log (as nginx has it)."""

    code = "client_gone"
    http_status = 499


class UnsupportedMediaType(PaddleDSError):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"
    http_status = 415
    type = "invalid_request_error"


class RequestTimeout(PaddleDSError):
    """The client took too long to send its request."""

    code = "request_timeout"
    http_status = 408
    type = "invalid_request_error"


class ErrorBody(msgspec.Struct, frozen=True):
    """All four keys are required by OpenAI's schema."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every response with a status of 400 or above, and of an error inside a stream."""

    error: ErrorBody


def error_json(info: ErrorInfo) -> bytes:
    """The error object as JSON."""
    param = None if info.param is None else _cut(info.param, _MAX_PARAM_CHARACTERS)
    return msgspec.json.encode(ErrorResponse(ErrorBody(_cut(info.message, MAX_MESSAGE_CHARACTERS), info.type, param, info.code)))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def error_response(info: ErrorInfo) -> Response:
    """The error as a response, with the headers that tell SDKs when to try again."""
    response = Response(error_json(info), status=info.http_status, content_type="application/json")
    if info.http_status in (429, 503):
        say_when(response, info.code)
    return response


def say_when(response: Response, code: str) -> None:
    """Add the headers that tell when to try again; openai-python reads the milliseconds first."""
    retry_s = RETRY_AFTER_S.get(code, 1.0)
    response.headers["retry-after"] = str(math.ceil(retry_s))
    response.headers["retry-after-ms"] = str(int(retry_s * 1000))


def unexpected(error: BaseException, request_id: str) -> ErrorInfo:
    """A defect of ours: logged with its traceback, told to the client without details."""
    _log.error("request.crashed", extra=fields(request_id=request_id), exc_info=error)
    return InternalError(f"internal error; the server's log has it under request id {request_id}").info()


def install(app: Flask) -> None:
    """Register the handlers for our errors, Werkzeug's and everything else."""

    @app.errorhandler(PaddleDSError)
    def ours(error: PaddleDSError) -> Response:
        g.record.failed(error.info())
        return error_response(error.info())

    @app.errorhandler(HTTPException)
    def werkzeugs(error: HTTPException) -> Response:
        status = error.code or 500
        kind, code = _HTTP_CODES.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
        info = ErrorInfo(code or "http_error", error.description or error.name, kind, status)
        g.record.failed(info)
        response = error_response(info)
        for name, value in error.get_headers():
            if name.lower() not in ("content-type", "content-length"):
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def defects(error: Exception) -> Response:
        info = unexpected(error, g.record.request_id)
        g.record.failed(info)
        return error_response(info)
