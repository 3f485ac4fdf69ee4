"""Reading a JSON body: one way for all routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from flask import request

from paddle_ds_serving.http_errors import UnsupportedMediaType
from paddle_ds_serving.protocol.body import Refused, decode

T = TypeVar("T", bound=msgspec.Struct)


def json_body(kind: type[T], refused: Mapping[str, Refused] | None = None) -> T:
    """The current request's body as a record.

    A declared JSON content type is required: without that rule any web page could make a visitor's browser post to a server
    on the visitor's own machine, since forms and plain text need no permission of the server.

    Raises:
        UnsupportedMediaType: the body is not declared as JSON.
        InvalidRequest, UnsupportedParameter: see :func:`decode`.
    """
    if not request.is_json:
        declared = request.mimetype or "nothing"
        raise UnsupportedMediaType(f"content-type is {declared}; send application/json")
    return decode(request.get_data(cache=False), kind, refused or {})
