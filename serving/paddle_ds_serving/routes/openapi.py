"""``GET /openapi.json``."""

from __future__ import annotations

import functools

import msgspec
from flask import Blueprint, Response

from paddle_ds_serving import openapi_document

blueprint = Blueprint("openapi", __name__)


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """What this server can be asked, and what it answers: OpenAPI 3.1. It needs no engine."""
    return Response(_encoded(), content_type="application/json")


@functools.cache
def _encoded() -> bytes:
    return msgspec.json.encode(openapi_document.document())
