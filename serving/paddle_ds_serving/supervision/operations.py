"""What the control socket can be asked. The /admin routes offer the same and nothing more, and not ``shadow``, which is how HTTP
workers report answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from paddle_ds.errors import InvalidRequest
from paddle_ds_serving.supervision.control import Handler
from paddle_ds_serving.supervision.fleet import Fleet, Unit
from paddle_ds_serving.supervision.health import HealthWatch
from paddle_ds_serving.supervision.shadow import Report, ShadowPlan
from paddle_ds_serving.supervision.updater import Updater

_DRAINED = "the server was drained by its operator; it takes no new requests"


def operations(fleet: Fleet, updater: Updater, health: HealthWatch) -> dict[str, Handler]:
    """Name of each operation and what carries it out."""

    def status(question: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "engine": _unit(fleet.current),
            "generation": fleet.generation,
            "accepting": not fleet.refusal,
            "refusal": fleet.refusal or None,
            "draining": [_unit(unit) for unit in fleet.draining],
            "update": _update(updater),
            "history": [{"path": place.path, "weight_version": place.version} for place in reversed(updater.history)],
            "engine_restarts": fleet.num_restarts,
            "canary": {"failures_in_a_row": health.num_failures, "last_error": health.last_error or None},
            "rolled_back_because": health.rolled_back_because or None,
        }

    def load(question: Mapping[str, Any]) -> Any:
        path = question.get("path")
        if not isinstance(path, str) or not path:
            raise InvalidRequest("path must be the path of a checkpoint on the server's machine", param="path")
        return updater.load(path, may_drain=_flag(question, "may_drain"), shadow=ShadowPlan.read(question))

    def rollback(question: Mapping[str, Any]) -> Any:
        return updater.roll_back(may_drain=_flag(question, "may_drain"))

    def drain(question: Mapping[str, Any]) -> dict[str, Any]:
        fleet.refuse(_DRAINED if _flag(question, "enabled") else "")
        return {"accepting": not fleet.refusal, "requests": fleet.current.num_requests}

    def shadow(question: Mapping[str, Any]) -> None:
        try:
            report = msgspec.convert(question.get("report"), Report, str_keys=True)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"not a report: {error}", param="report") from error
        updater.report(report)

    return {"status": status, "load": load, "rollback": rollback, "drain": drain, "shadow": shadow}


def _update(updater: Updater) -> dict[str, Any]:
    comparison = updater.comparison
    return {
        "running": updater.running,
        "stage": updater.stage or None,
        "last_error": updater.last_error or None,
        "shadow": None if comparison is None else comparison.result(),
    }


def _flag(question: Mapping[str, Any], name: str) -> bool:
    value = question.get(name, True)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value


def _unit(unit: Unit) -> dict[str, Any]:
    info = unit.client.info
    model = info.model if info is not None else None
    return {
        "state": info.state if info is not None and unit.client.connected else "disconnected",
        "pid": unit.child.pid,
        "model": model.name if model else None,
        "path": model.directory if model else unit.config.model or None,
        "weight_version": unit.version or None,
        "requests": unit.num_requests,
        "starts": unit.child.num_starts,
    }
