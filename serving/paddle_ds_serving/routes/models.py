"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Blueprint, Response

from paddle_ds_serving.service import Served, check_model, current

blueprint = Blueprint("models", __name__)


@blueprint.get("/v1/models")
def listing() -> Response:
    """The one model that is served."""
    return _answer({"object": "list", "data": [_card(current().served())]})


@blueprint.get("/v1/models/<path:model>")
def one(model: str) -> Response:
    """That model, or 404."""
    served = current().served()
    check_model(served.model, model)
    return _answer(_card(served))


def _card(served: Served) -> dict[str, Any]:
    model = served.model
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "paddle-ds",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_context_tokens,
        "weight_version": model.weight_version or None,
        "quantization": model.quant,
        "default_sampling": dict(served.defaults.values),
    }


def _answer(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), content_type="application/json")
