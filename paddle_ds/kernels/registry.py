"""Which implementation of each operator runs: chosen once, when a model is loaded, and reported everywhere.

An implementation says why it cannot run here by returning a sentence from ``unavailable``; the first one that can is taken,
in the order of the table. Every operator has a ``reference`` in plain Paddle as its last resort. On the CPU the compiled
operators come first; on any other device, what the device brings along, then what its capabilities allow, then the reference,
whose operators Paddle runs on the device as far as it has kernels for them.

Operators that belong together (the cache, what writes it and what reads it) are one row, because they share a memory layout.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from paddle_ds.devices.base import Capability, Device
from paddle_ds.errors import UnsupportedError
from paddle_ds.kernels import (
    candidates,
    dense_linear,
    device_linear,
    grouped_linear,
    int8_linear,
    native,
    native_grouped,
    paged_attention,
    rms_norm,
    rotary,
    silu_mul,
    weight_only_linear,
)
from paddle_ds.kernels.candidates import Candidates
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

REFERENCE = "reference"
NATIVE = "native"


def _always(device: Device) -> str | None:
    return None


def _native(device: Device) -> str | None:
    return native.why_unavailable()


def _lacks(capability: Capability) -> Callable[[Device], str | None]:
    def why(device: Device) -> str | None:
        if capability in device.capabilities.ops:
            return None
        return device.capabilities.missing.get(capability, f"the device has no {capability}")

    return why


@dataclasses.dataclass(frozen=True)
class Attention:
    """A paged cache and the operators that know its layout."""

    #: tokens of a block that it is made for; ``None``: any
    block_tokens: int | None
    make_cache: Callable[..., Any]
    kv_write: Callable[..., None]
    attend: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to run an operator. ``unavailable`` returns ``None``, or why it cannot run on the device."""

    name: str
    function: Any
    unavailable: Callable[[Device], str | None] = _always


@dataclasses.dataclass(frozen=True)
class Kernels:
    """What was chosen. Linear layers are made from weights and then called; the others are functions."""

    rms_norm: Callable[..., Any]
    rotary: Callable[..., Any]
    silu_mul: Callable[..., Any]
    paged_attention: Attention
    int8_linear: Callable[..., Any]
    weight_only_linear: Callable[..., Any]
    grouped_linear: Callable[..., Any]
    dense_linear: Callable[..., Any]
    candidates: Callable[..., Candidates]
    #: makes an object that runs all layers at once, or ``None``
    fused_decoder: Callable[..., Any] | None
    #: operator -> name of the implementation that was chosen
    chosen: dict[str, str]
    #: operator -> why a faster implementation was passed over
    passed_over: dict[str, str]


def _rows(compiled: Any, reference: Any) -> list[Implementation]:
    return [Implementation(NATIVE, compiled, _native), Implementation(REFERENCE, reference)]


_TABLE: dict[str, list[Implementation]] = {
    "rms_norm": _rows(native.rms_norm, rms_norm.reference),
    "rotary": _rows(native.rotary, rotary.reference),
    "silu_mul": _rows(native.silu_mul, silu_mul.reference),
    "paged_attention": _rows(
        Attention(native.BLOCK_TOKENS, native.make_cache, native.kv_write, native.paged_attention),
        Attention(None, paged_attention.make_cache, paged_attention.kv_write, paged_attention.attend),
    ),
    "int8_linear": _rows(native.NativeInt8Linear, int8_linear.ReferenceInt8Linear),
    "weight_only_linear": _rows(native.NativeWeightOnlyLinear, weight_only_linear.ReferenceWeightOnlyLinear),
    "grouped_linear": _rows(native_grouped.NativeGroupedLinear, grouped_linear.ReferenceGroupedLinear),
    "dense_linear": _rows(native.NativeDenseLinear, dense_linear.ReferenceDenseLinear),
    "candidates": _rows(native.candidates, candidates.reference),
    "fused_decoder": _rows(native.FusedDecoder, None),
}


#: on devices other than the CPU, before the reference
_BY_CAPABILITY: dict[str, list[tuple[Capability, Any, bool]]] = {
    "int8_linear": [
        ("int8_gemm", device_linear.Int8MatmulLinear, False),
        ("llm_int8", device_linear.LlmInt8Linear, True),
    ],
    "weight_only_linear": [("weight_only_int8", device_linear.PaddleWeightOnlyLinear, True)],
}


def _rows_for(op: str, device: Device) -> list[Implementation]:
    """Ways to run ``op`` on ``device``, best first."""
    if device.type == "cpu":
        return _TABLE[op]
    rows = [Implementation(brought.name, brought.function) for brought in device.operators().get(op, ())]
    for capability, kind, needs_device in _BY_CAPABILITY.get(op, ()):
        function = device_linear.maker(kind, device) if needs_device else kind
        rows.append(Implementation(capability, function, _lacks(capability)))
    return rows + [row for row in _TABLE[op] if row.name == REFERENCE]


def implementations() -> dict[str, tuple[str, ...]]:
    """Operator -> names of its implementations on the CPU, best first."""
    return {op: tuple(implementation.name for implementation in table) for op, table in _TABLE.items()}


def choose(device: Device, *, strict: bool = False, only: str | None = None) -> Kernels:
    """The best implementation of each operator on ``device``.

    Args:
        only: take this implementation wherever an operator has it, such as ``reference`` for a comparison.

    Raises:
        UnsupportedError: ``strict`` is set and an operator would not run on its best implementation.
    """
    functions: dict[str, Any] = {}
    chosen: dict[str, str] = {}
    passed_over: dict[str, str] = {}
    for op in _TABLE:
        table = _rows_for(op, device)
        candidates = [row for row in table if row.name == only] or table
        for implementation in candidates:
            reason = implementation.unavailable(device)
            if reason is None:
                functions[op], chosen[op] = implementation.function, implementation.name
                break
            before = f"{passed_over[op]}; " if op in passed_over else ""
            passed_over[op] = f"{before}{implementation.name}: {reason}"
    if strict and passed_over:
        op, reason = next(iter(passed_over.items()))
        raise UnsupportedError(f"strict: operator {op} would fall back to {chosen[op]} because {reason}")
    for op, reason in passed_over.items():
        logger.warning("kernel.fallback", extra=fields(op=op, runs=chosen[op], because=reason))
    return Kernels(**functions, chosen=chosen, passed_over=passed_over)
