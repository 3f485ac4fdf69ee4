"""``/admin``: change the model, go back, drain, and what is going on. Each route hands its question to the supervisor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from flask import Blueprint, Response, g

from paddle_ds.errors import EngineUnavailable, InternalError, InvalidRequest, PaddleDSError
from paddle_ds_serving.access.errors import PermissionDenied
from paddle_ds_serving.access.scopes import Scope
from paddle_ds_serving.routes.bodies import json_body
from paddle_ds_serving.service import current
from paddle_ds_serving.supervision import control

blueprint = Blueprint("admin", __name__)

#: Linux takes no longer one
_MAX_PATH_BYTES = 4096


class LoadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /admin/models/load``."""

    #: directory or weight file on the server's machine
    path: str
    #: refuse requests and drain where memory does not allow two engines
    may_drain: bool = True
    #: compare it before it is switched to, on so many per cent of the requests
    shadow: float | None = None
    #: how many, by default 50
    shadow_requests: int | None = None
    #: and for how long at most, by default 300
    shadow_limit_s: float | None = None
    #: refuse it where less of its tokens are those of the current one, from 0 to 1
    min_agreement: float | None = None


class RollbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /admin/rollback``."""

    may_drain: bool = True


class DrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /admin/drain``; ``enabled: false`` takes requests again."""

    enabled: bool = True


@blueprint.before_request
def only_for_admins() -> None:
    """Refuse, once more, whoever was let in without the scope: these routes never work without a key."""
    principal = g.get("principal")
    if principal is None or Scope.ADMIN not in principal.scopes:
        raise PermissionDenied("admin routes need a key with the scope 'admin'", scope=Scope.ADMIN.value)


@blueprint.get("/admin/status")
def status() -> Response:
    """Engines, versions, and an update that runs."""
    return _ask("status")


@blueprint.post("/admin/models/load")
def load() -> Response:
    """Serve another checkpoint. The answer comes when it is served, or refused."""
    body = json_body(LoadRequest)
    _check_path(body.path)
    return _ask("load", **msgspec.structs.asdict(body))


def _check_path(path: str) -> None:
    if len(path.encode()) > _MAX_PATH_BYTES:
        raise InvalidRequest(f"path has more than {_MAX_PATH_BYTES} bytes", param="path")


@blueprint.post("/admin/rollback")
def rollback() -> Response:
    """Serve the checkpoint that was served before."""
    return _ask("rollback", may_drain=json_body(RollbackRequest).may_drain)


@blueprint.post("/admin/drain")
def drain() -> Response:
    """Take no new requests; those that run go on."""
    return _ask("drain", enabled=json_body(DrainRequest).enabled)


def _ask(op: str, **arguments: Any) -> Response:
    address = current().settings.engine_socket
    if address is None:
        raise EngineUnavailable("this HTTP worker was not started by `paddle-ds serve`: there is no supervisor to ask")
    try:
        answer = control.ask(Path(address).parent / control.FILE_NAME, op, **arguments)
    except InternalError:
        raise
    except PaddleDSError as error:
        if error.http_status == 500:  # a checkpoint that is refused is the request's fault, not the server's
            error.http_status, error.type = 400, "invalid_request_error"
        raise
    response = Response(msgspec.json.encode(answer), content_type="application/json")
    response.headers["cache-control"] = "no-store"
    return response
