"""``GET /metrics`` and ``GET /version``."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from paddle_ds import __version__
from paddle_ds_serving.service import current

blueprint = Blueprint("monitoring", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Prometheus' text format."""
    return Response(current().metrics.exposition(), content_type=CONTENT_TYPE_PLAIN_0_0_4)


@blueprint.get("/version")
def version() -> Response:
    """The version of this software."""
    return Response(msgspec.json.encode({"version": __version__}), content_type="application/json")
