"""Reading a JSON body: one way for all routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from flask import request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from paddle_ds.errors import InvalidRequest
from paddle_ds_serving.http_errors import UnsupportedMediaType
from paddle_ds_serving.protocol.body import Refused, decode

T = TypeVar("T", bound=msgspec.Struct)


def json_body(kind: type[T], refused: Mapping[str, Refused] | None = None) -> T:
    """The current request's body as a record.

    A declared JSON content type is required: without that rule any web page could make a visitor's browser post to a server
    on the visitor's own machine, since forms and plain text need no permission of the server.

    Raises:
        UnsupportedMediaType: the body is not declared as JSON.
        RequestEntityTooLarge: it is longer than the application allows.
        RequestTimeout: it did not arrive in time.
        InvalidRequest, UnsupportedParameter: its chunks are malformed, or see :func:`decode`.
    """
    if not request.is_json:
        declared = request.mimetype or "nothing"
        raise UnsupportedMediaType(f"content-type is {declared}; send application/json")
    try:
        body = request.get_data(cache=False)
    except ParseException as error:
        raise InvalidRequest(f"the request's body is not valid HTTP: {error}") from error
    limit_bytes = request.max_content_length
    if request.content_length is None and limit_bytes is not None and len(body) >= limit_bytes:
        raise RequestEntityTooLarge  # a chunked body: Werkzeug stops reading at the limit and says nothing
    return decode(body, kind, refused or {})
