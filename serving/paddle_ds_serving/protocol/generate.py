"""``POST /generate``: the plain endpoint, one prompt in and one answer out."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from paddle_ds_serving.protocol.usage import UsageBody


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body. ``prompt`` is one user turn; a model without a chat template gets it as it is."""

    prompt: str
    model: str | None = None
    max_length: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None


class GenerateResponse(msgspec.Struct, frozen=True):
    """The answer. ``reasoning`` is what the model thought before it, or null."""

    id: str
    model: str
    response: str
    reasoning: str | None
    finish_reason: str
    usage: UsageBody
    weight_version: str | UnsetType = UNSET


class GenerateChunk(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of a stream; the last one carries ``finish_reason`` and ``usage``."""

    id: str
    response: str
    reasoning: str | None = None
    finish_reason: str | None = None
    usage: UsageBody | None = None
    weight_version: str | UnsetType = UNSET
