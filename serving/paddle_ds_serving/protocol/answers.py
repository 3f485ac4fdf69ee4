"""Types of the answers that routes write without a record of their own.

They are for ``/openapi.json``; a test holds the routes to them. Those of ``/admin`` that the supervisor makes are its own types.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from paddle_ds_serving.supervision.shadow import ShadowResult

State = Literal["loading", "ready", "stopping", "failed", "disconnected"]


class Problem(msgspec.Struct, frozen=True):
    """Why a probe is answered 503."""

    code: str
    message: str


class Probe(msgspec.Struct, frozen=True):
    """Whether requests are answered, in brief."""

    state: State
    error: Problem | UnsetType = UNSET


class KserveReady(msgspec.Struct, frozen=True):
    """KServe's name for readiness."""

    ready: bool


class KserveLive(msgspec.Struct, frozen=True):
    """KServe's name for liveness."""

    live: bool


class HealthModel(msgspec.Struct, frozen=True):
    """The model that is served, and on what."""

    name: str
    weight_version: str | None
    max_context_tokens: int
    quant: dict[Literal["requested", "running"], str]
    kv_cache: dict[Literal["dtype", "scales"], str | None]
    device: str | None
    memory_flags: dict[str, str]
    kernels: dict[str, str]
    int8_products: dict[str, int]
    vector_isa: str | None
    onednn_version: str | None
    isa_caps: dict[str, str]
    weight_bytes: dict[str, int]
    load_s: float


class HealthLoad(msgspec.Struct, frozen=True):
    """The engine's load, at most a second old."""

    running: int
    waiting: int
    kv_cache_blocks: dict[Literal["total", "free"], int]
    bad_frames: int
    fallback_ops: dict[str, int]
    step_token_limit: int | None
    shrunk_steps: int


class Health(msgspec.Struct, frozen=True):
    """Everything that a person wants to know. `model` is null while it is loading."""

    state: State
    version: str
    progress: float | None
    model: HealthModel | None
    boot_id: str | UnsetType = UNSET
    load: HealthLoad | UnsetType = UNSET
    error: Problem | UnsetType = UNSET


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """The served model. `default_sampling` has the parameters that count where a request has none."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    weight_version: str | None
    quantization: str
    default_sampling: dict[str, Any]


class ModelList(msgspec.Struct, frozen=True):
    """A list of one model."""

    object: Literal["list"]
    data: list[ModelCard]


class Version(msgspec.Struct, frozen=True):
    """The version of this software."""

    version: str


class AdminEngine(msgspec.Struct, frozen=True):
    """One engine. `starts` counts how often its process was started."""

    state: State
    pid: int | None
    model: str | None
    path: str | None
    weight_version: str | None
    requests: int | None
    starts: int


class AdminUpdate(msgspec.Struct, frozen=True):
    """The update that runs, and what the last one failed with. `shadow` is null unless a comparison runs."""

    running: bool
    stage: str | None
    last_error: str | None
    shadow: ShadowResult | None


class AdminPlace(msgspec.Struct, frozen=True):
    """A checkpoint that was served before."""

    path: str
    weight_version: str


class AdminCanary(msgspec.Struct, frozen=True):
    """The health check of the engine."""

    failures_in_a_row: int
    last_error: str | None


class AdminStatus(msgspec.Struct, frozen=True):
    """Engines, versions, and an update that runs. Checkpoints that can be gone back to come newest first."""

    engine: AdminEngine
    generation: int
    accepting: bool
    refusal: str | None
    draining: list[AdminEngine]
    update: AdminUpdate
    history: list[AdminPlace]
    engine_restarts: int
    canary: AdminCanary
    rolled_back_because: str | None


class Updated(msgspec.Struct, frozen=True):
    """An update or a rollback that worked."""

    path: str
    weight_version: str
    previous_version: str
    #: whether every tensor was compared with ``manifest.json``; false: there is none, only the reader's own checks
    manifest_verified: bool
    #: ``beside``: loaded while the old one served. ``after_drain``: there was no memory for both, requests were refused meanwhile
    mode: Literal["beside", "after_drain"]
    seconds: float
    #: how its answers compared with those of the one before; ``None``: that was not asked for
    shadow: ShadowResult | None = None


class AdminDrained(msgspec.Struct, frozen=True):
    """Whether requests are taken, and how many still run."""

    accepting: bool
    requests: int | None
