"""Layers of a program on Paddle's own operators only: the references of ``kernels/``, traced. For any device, and slower.

INT8 weights are INT8 in the file and are widened to float32 each time they are multiplied by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_ds.export.layout import ProgramCache, ProgramLayout, count, keep_rows, no_cache, num_tokens
from paddle_ds.export.parameters import Parameters, value_or_none
from paddle_ds.kernels import (
    candidates,
    dense_linear,
    grouped_linear,
    int8_linear,
    rms_norm,
    rotary,
    silu_mul,
    weight_only_linear,
)
from paddle_ds.kernels.grouped_linear import FloatArray, GroupedArguments, Int8Array, Int16Array, Int32Array, pack
from paddle_ds.kernels.reference_layer import Int8Rows, stack
from paddle_ds.kernels.registry import Attention, Kernels

#: added to the score of a token that may not be seen: its weight becomes 0, as with minus infinity
_HIDDEN = -1e30


def kernels(parameters: Parameters) -> Kernels:
    """Operators that trace into the program whose parameters these are."""

    def norm(x: Any, weight: paddle.Tensor, eps: float) -> Any:
        return rms_norm.reference(x, parameters.tensor(weight, "norm").value(), eps)

    return Kernels(
        rms_norm=norm,
        rotary=rotary.reference,
        silu_mul=silu_mul.reference,
        paged_attention=Attention(None, no_cache, keep_rows, _Attention()),
        int8_linear=functools.partial(_Int8Linear, parameters, int8_linear.reference),
        weight_only_linear=functools.partial(_Int8Linear, parameters, weight_only_linear.reference),
        grouped_linear=functools.partial(_GroupedLinear, parameters),
        dense_linear=functools.partial(_DenseLinear, parameters),
        candidates=candidates.reference,
        fused_decoder=None,
        chosen={},
        passed_over={},
    )


class _Int8Linear:
    """W8A8 or W8A16, by the reference that multiplies."""

    def __init__(
        self,
        parameters: Parameters,
        reference: Callable[..., Any],
        weight: Int8Rows,
        weight_scale: FloatArray,
        bias: FloatArray | None,
    ) -> None:
        self._reference = reference
        self._weight = parameters.array(np.array(stack(weight)), "int8")
        self._scale = parameters.array(np.ascontiguousarray(weight_scale, np.float32), "scale")
        self._bias = parameters.optional(bias, "bias")

    def __call__(self, x: Any) -> Any:
        return self._reference(x, self._weight.value(), self._scale.value(), value_or_none(self._bias))


class _DenseLinear:
    """bfloat16 or float32, as stored."""

    def __init__(self, parameters: Parameters, weight: paddle.Tensor, bias: paddle.Tensor | None) -> None:
        self._weight = parameters.tensor(weight, "weight")
        self._bias = None if bias is None else parameters.tensor(bias, "bias")

    def __call__(self, x: Any) -> Any:
        return dense_linear.reference(x, self._weight.value(), value_or_none(self._bias))


class _GroupedLinear:
    """W4A16 or W8A16 with groups."""

    def __init__(
        self,
        parameters: Parameters,
        values: Int8Array,
        scales: FloatArray,
        zero_points: Int16Array | None,
        group_index: Int32Array | None,
        group_size: int,
        bits: int,
        bias: FloatArray | None,
    ) -> None:
        given = GroupedArguments(values, scales, zero_points, group_index, group_size, bits, bias)
        self._own = [
            parameters.array(pack(values, bits), f"int{bits}"),
            parameters.array(np.ascontiguousarray(scales), "scale"),
            parameters.optional(zero_points, "zero_points"),
            parameters.array(given.group_of_column(), "groups"),
            parameters.optional(bias, "bias"),
        ]

    def __call__(self, x: Any) -> Any:
        return grouped_linear.reference(x, *map(value_or_none, self._own))


class _Attention:
    """``paged_attention.reference`` of one sequence over rows. What all layers share is added to the program once."""

    def __init__(self) -> None:
        self._shared: tuple[Any, Any] | None = None

    def __call__(self, query: Any, cache: ProgramCache, layer: int, layout: ProgramLayout) -> Any:
        """float32 [T, heads, D] -> [T, heads * D]."""
        if self._shared is None:
            self._shared = _context_rows(query, cache), _mask(query, cache)
        rows, mask = self._shared
        keys = _context(cache.past_keys, cache.keys, layer, rows)
        values = _context(cache.past_values, cache.values, layer, rows)
        _, kv_heads, dim = keys.shape
        heads = query.shape[1]
        k = keys.transpose([1, 2, 0]).unsqueeze(1)
        v = values.transpose([1, 0, 2]).unsqueeze(1)
        q = query.transpose([1, 0, 2]).reshape([kv_heads, heads // kv_heads, -1, dim])
        weights = F.softmax(paddle.matmul(q * dim**-0.5, k) + mask, axis=-1)
        out = paddle.matmul(weights, v).reshape([heads, -1, dim])
        return out.transpose([1, 0, 2]).reshape([-1, heads * dim])


def _context(host: Any, new: list[Any], layer: int, rows: Any) -> Any:
    """Keys or values of the whole context, [past_length + T, kv_heads, D]."""
    return paddle.gather(paddle.concat([host[layer], new[layer]], axis=0), rows)


def _context_rows(query: Any, cache: ProgramCache) -> Any:
    """Where the context lies in the host's rows with the new ones behind them, int64 [past_length + T].

    The rows of the host from ``past_length`` on may hold anything, NaN too, so they are left out and not masked. They are picked
    by number: a slice would be empty in the first call, which Paddle's oneDNN slice refuses.
    """
    capacity = paddle.shape(cache.past_keys)[1:2].astype("int64")
    past = cache.past_length
    rows = count(0, past + num_tokens(query))
    return rows + (rows >= past).astype("int64") * (capacity - past)


def _mask(query: Any, cache: ProgramCache) -> Any:
    """0 where a token may look, and where not what no score comes up against; float32 [T, past_length + T]."""
    end = cache.past_length + num_tokens(query)
    hidden = count(0, end).unsqueeze(0) > count(cache.past_length, end).unsqueeze(1)
    return hidden.astype("float32") * _HIDDEN
