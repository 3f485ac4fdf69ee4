"""Which implementation of each operator runs: chosen once, when a model is loaded, and reported everywhere.

An implementation says why it cannot run here by returning a sentence from ``unavailable``; the first one that can is taken,
in the order of registration. Every operator has a ``reference`` in plain Paddle as its last resort.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from paddle_ds.devices.base import Device
from paddle_ds.errors import UnsupportedError
from paddle_ds.kernels import (
    dense_linear,
    int8_linear,
    paged_attention,
    rms_norm,
    rotary,
    silu_mul,
    weight_only_linear,
)
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

REFERENCE = "reference"


def _always(device: Device) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to run an operator. ``unavailable`` returns ``None``, or why it cannot run on the device."""

    name: str
    function: Callable[..., Any]
    unavailable: Callable[[Device], str | None] = _always


@dataclasses.dataclass(frozen=True)
class Kernels:
    """One function an operator; signatures are those of the references."""

    rms_norm: Callable[..., Any]
    rotary: Callable[..., Any]
    silu_mul: Callable[..., Any]
    kv_write: Callable[..., Any]
    paged_attention: Callable[..., Any]
    int8_linear: Callable[..., Any]
    weight_only_linear: Callable[..., Any]
    dense_linear: Callable[..., Any]
    #: operator -> name of the implementation that was chosen
    chosen: dict[str, str]
    #: operator -> why a faster implementation was passed over
    passed_over: dict[str, str]


_TABLE: dict[str, list[Implementation]] = {
    "rms_norm": [Implementation(REFERENCE, rms_norm.reference)],
    "rotary": [Implementation(REFERENCE, rotary.reference)],
    "silu_mul": [Implementation(REFERENCE, silu_mul.reference)],
    "kv_write": [Implementation(REFERENCE, paged_attention.write_reference)],
    "paged_attention": [Implementation(REFERENCE, paged_attention.reference)],
    "int8_linear": [Implementation(REFERENCE, int8_linear.reference)],
    "weight_only_linear": [Implementation(REFERENCE, weight_only_linear.reference)],
    "dense_linear": [Implementation(REFERENCE, dense_linear.reference)],
}


def implementations() -> dict[str, tuple[str, ...]]:
    """Operator -> names of its implementations, best first."""
    return {op: tuple(implementation.name for implementation in table) for op, table in _TABLE.items()}


def choose(device: Device, *, strict: bool = False) -> Kernels:
    """The best implementation of each operator on ``device``.

    Raises:
        UnsupportedError: ``strict`` is set and an operator would not run on its best implementation.
    """
    functions: dict[str, Callable[..., Any]] = {}
    chosen: dict[str, str] = {}
    passed_over: dict[str, str] = {}
    for op, table in _TABLE.items():
        for implementation in table:
            reason = implementation.unavailable(device)
            if reason is None:
                functions[op], chosen[op] = implementation.function, implementation.name
                break
            passed_over[op] = f"{implementation.name}: {reason}"
    if strict and passed_over:
        op, reason = next(iter(passed_over.items()))
        raise UnsupportedError(f"strict: operator {op} would fall back to {chosen[op]} because {reason}")
    for op, reason in passed_over.items():
        logger.warning("kernel.fallback", extra=fields(op=op, runs=chosen[op], because=reason))
    return Kernels(**functions, chosen=chosen, passed_over=passed_over)
