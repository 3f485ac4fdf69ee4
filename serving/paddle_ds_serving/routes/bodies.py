"""Reading a JSON body: one way for all routes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from flask import Response, after_this_request, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from paddle_ds.errors import InvalidRequest
from paddle_ds_serving.http_errors import UnsupportedMediaType
from paddle_ds_serving.protocol.body import Refused, decode

T = TypeVar("T", bound=msgspec.Struct)

#: from here on a body takes a hundred times its length, for a moment, where it is tokenized
LARGE_BYTES = 2**20
#: Gives free memory back. glibc alone would keep it: a few large bodies at once, and a worker has a gigabyte more for good.
#: Other C libraries have no such function, and need none
malloc_trim: Callable[[int], object] = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)


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
    if len(body) >= LARGE_BYTES:
        after_this_request(_gives_memory_back)
    return decode(body, kind, refused or {})


def _gives_memory_back(response: Response) -> Response:
    """Once it is sent, and nothing of its request is needed any more."""
    response.call_on_close(lambda: malloc_trim(0))
    return response
