"""Health: ``live`` asks whether to restart this server, ``ready`` whether to send it requests."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Blueprint, Response

from paddle_ds import __version__
from paddle_ds.errors import EngineUnavailable, PaddleDSError
from paddle_ds_serving.http_errors import say_when
from paddle_ds_serving.service import Service, current

blueprint = Blueprint("health", __name__)


@blueprint.get("/health")
def health() -> Response:
    """Everything a person wants to know: 200 where requests are answered, else 503."""
    service = current()
    status, problem = _readiness(service)
    return _answer({**_detail(service), **problem}, status)


@blueprint.get("/health/ready")
def ready() -> Response:
    """200 where requests are answered, else 503."""
    service = current()
    status, problem = _readiness(service)
    return _answer({"state": _state(service), **problem}, status)


@blueprint.get("/health/live")
def live() -> Response:
    """200 unless the engine has given up; loading and restarting are no reason to kill the server."""
    state = _state(current())
    return _answer({"state": state}, 503 if state == "failed" else 200)


@blueprint.get("/v2/health/ready")
def kserve_ready() -> Response:
    """KServe's name for :func:`ready`."""
    status, _ = _readiness(current())
    return _answer({"ready": status == 200}, status)


@blueprint.get("/v2/health/live")
def kserve_live() -> Response:
    """KServe's name for :func:`live`."""
    alive = _state(current()) != "failed"
    return _answer({"live": alive}, 200 if alive else 503)


def _state(service: Service) -> str:
    info = service.engine.info
    if not service.engine.connected or info is None:
        return "failed" if info is not None and info.state == "failed" else "disconnected"
    return info.state


def _readiness(service: Service) -> tuple[int, dict[str, Any]]:
    """The status, and the reason where it is not 200. A ready answer means that the tokenizer is loaded, too."""
    try:
        service.served()
    except PaddleDSError as error:
        return 503, {"error": {"code": error.code, "message": error.message}}
    return 200, {}


def _detail(service: Service) -> dict[str, Any]:
    info, stats = service.engine.info, service.engine.stats
    detail: dict[str, Any] = {"state": _state(service), "version": __version__, "progress": None, "model": None}
    if info is not None:
        detail.update(progress=info.progress, boot_id=info.boot_id)
    if info is not None and info.model is not None:
        model = info.model
        detail["model"] = {
            "name": model.name,
            "weight_version": model.weight_version or None,
            "max_context_tokens": model.max_context_tokens,
            "quant": {"requested": model.requested_quant, "running": model.quant},
            "kv_cache": {"dtype": model.kv_dtype or None, "scales": model.kv_scales or None},
            "device": model.device or None,
            "memory_flags": model.flags,
            "kernels": model.kernels,
            "int8_products": model.int8_products,
            "vector_isa": model.vector_isa or None,
            "onednn_version": model.onednn_version or None,
            "isa_caps": model.isa_caps,
            "weight_bytes": model.weight_bytes,
            "load_s": model.load_s,
        }
    if stats is not None:
        detail["load"] = {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "kv_cache_blocks": {"total": stats.num_blocks, "free": stats.num_free_blocks},
            "bad_frames": stats.bad_frames_total,
            "fallback_ops": stats.fallback_ops,
            "step_token_limit": stats.step_token_limit or None,
            "shrunk_steps": stats.shrunk_steps_total,
        }
    return detail


def _answer(body: dict[str, Any], status: int) -> Response:
    response = Response(msgspec.json.encode(body), status=status, content_type="application/json")
    response.headers["cache-control"] = "no-store"
    if status == 503:
        say_when(response, EngineUnavailable.code)
    return response
