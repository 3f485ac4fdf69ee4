"""Layers of a program on the compiled operators of ``csrc/export_ops.cc``: INT8 at the engine's speed, CPU only.

The program needs the library of operators beside it. Its results are the engine's, to the bit: the same loops run.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import paddle

from paddle_ds.config.model import ModelConfig
from paddle_ds.export.layout import ProgramCache, ProgramLayout, keep_rows, no_cache
from paddle_ds.export.packing import pack_int8
from paddle_ds.export.parameters import Parameter, Parameters, value_or_none
from paddle_ds.kernels import candidates
from paddle_ds.kernels.grouped_linear import FloatArray, GroupedArguments, Int8Array, Int16Array, Int32Array, pack
from paddle_ds.kernels.native_grouped import in_group_order
from paddle_ds.kernels.reference_layer import Int8Rows, stack
from paddle_ds.kernels.registry import Attention, Kernels
from paddle_ds.models import Decoder


def kernels(parameters: Parameters) -> Kernels:
    """Operators that trace into the program whose parameters these are."""

    def rms_norm(x: Any, weight: paddle.Tensor, eps: float) -> Any:
        return _run("pds_rms_norm", x, parameters.tensor(weight, "norm").value(), eps)[0]

    return Kernels(
        rms_norm=rms_norm,
        rotary=lambda x, cos, sin: _run("pds_rotary", x, cos, sin)[0],
        silu_mul=lambda gate_up: _run("pds_silu_mul", gate_up)[0],
        paged_attention=Attention(None, no_cache, keep_rows, _attend),
        int8_linear=functools.partial(CompiledInt8Linear, parameters),
        weight_only_linear=functools.partial(_WeightOnlyLinear, parameters),
        grouped_linear=functools.partial(_GroupedLinear, parameters),
        dense_linear=functools.partial(_DenseLinear, parameters),
        candidates=candidates.reference,
        fused_decoder=None,
        chosen={},
        passed_over={},
    )


def _run(name: str, *arguments: Any) -> list[Any]:
    """Add an operator to the program that is being built."""
    values: list[Any] = paddle._C_ops._run_custom_op(name, *arguments)
    return values


def _attend(query: Any, cache: ProgramCache, layer: int, layout: ProgramLayout) -> Any:
    past = (cache.past_keys, cache.past_values, cache.past_length)
    return _run("pds_export_attention", query, cache.keys[layer], cache.values[layer], *past, layer)[0]


class CompiledInt8Linear:
    """W8A8; same contract as ``int8_linear.ReferenceInt8Linear``."""

    def __init__(self, parameters: Parameters, weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None) -> None:
        packed, zero_points = pack_int8(weight, len(weight_scale))
        self._packed = parameters.array(packed, "int8")
        self._zero_points = parameters.array(zero_points, "zero_points")
        self._scale = parameters.array(np.ascontiguousarray(weight_scale, np.float32), "scale")
        self._bias = parameters.optional(bias, "bias")

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    def values(self) -> list[Any]:
        """Packed weight, zero points, scales, and the bias where there is one."""
        own = (self._packed, self._zero_points, self._scale, self._bias)
        return [parameter.value() for parameter in own if parameter is not None]

    def __call__(self, x: Any) -> Any:
        arguments = self.values() if self.has_bias else [*self.values(), None]
        return _run("pds_export_int8_linear", x, *arguments)[0]


class _WeightOnlyLinear:
    """W8A16."""

    def __init__(self, parameters: Parameters, weight: Int8Rows, weight_scale: FloatArray, bias: FloatArray | None) -> None:
        self._weight = parameters.array(np.array(stack(weight)), "int8")
        self._scale = parameters.array(np.ascontiguousarray(weight_scale, np.float32), "scale")
        self._bias = parameters.optional(bias, "bias")

    def __call__(self, x: Any) -> Any:
        arguments = (self._weight.value(), self._scale.value(), value_or_none(self._bias))
        return _run("pds_export_float_linear", x, *arguments)[0]


class _DenseLinear:
    """bfloat16 or float32, as stored."""

    def __init__(self, parameters: Parameters, weight: paddle.Tensor, bias: paddle.Tensor | None) -> None:
        self._weight = parameters.tensor(weight, "weight")
        self._bias = None if bias is None else parameters.tensor(bias, "bias")

    def __call__(self, x: Any) -> Any:
        return _run("pds_export_float_linear", x, self._weight.value(), None, value_or_none(self._bias))[0]


class _GroupedLinear:
    """W4A16 or W8A16 with groups; the preparation is that of ``native_grouped.NativeGroupedLinear``."""

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
        order, starts = in_group_order(given)
        self._values = parameters.array(pack(values, bits, order), f"int{bits}")
        self._scales = parameters.array(np.ascontiguousarray(scales), "scale")
        self._starts = parameters.array(starts, "starts")
        self._optional = [
            parameters.optional(zero_points, "zero_points"),
            parameters.optional(order, "order"),
            parameters.optional(bias, "bias"),
        ]

    def __call__(self, x: Any) -> Any:
        needed = (self._values.value(), self._scales.value(), self._starts.value())
        return _run("pds_export_grouped_linear", x, *needed, *map(value_or_none, self._optional))[0]


def fuse(decoder: Decoder, parameters: Parameters) -> None:
    """Where every linear layer is W8A8, let one operator run all layers, as the engine does."""
    linears = [linear for layer in decoder.layers for linear in layer.linears()]
    if linears and all(isinstance(linear, CompiledInt8Linear) for linear in linears):
        decoder.fused = _FusedDecoder(decoder, parameters)
        decoder.layers = []


class _FusedDecoder:
    """All layers in one operator."""

    def __init__(self, decoder: Decoder, parameters: Parameters) -> None:
        self._config: ModelConfig = decoder.config
        self._parts: list[Parameter | CompiledInt8Linear] = []
        #: bit i: the i-th linear layer of each layer has a bias
        self._biases = 0
        for layer in decoder.layers:
            self._parts += [parameters.tensor(norm.weight, "norm") for norm in (layer.input_norm, layer.post_norm)]
            linears = [linear for linear in layer.linears() if isinstance(linear, CompiledInt8Linear)]
            self._parts += linears
            self._biases = sum(1 << bit for bit, linear in enumerate(linears) if linear.has_bias)

    def __call__(self, x: Any, cache: ProgramCache, layout: ProgramLayout) -> Any:
        """float32 [T, H] -> float32 [T, H], before the final norm."""
        values: list[Any] = []
        for part in self._parts:
            values += part.values() if isinstance(part, CompiledInt8Linear) else [part.value()]
        past = (cache.past_keys, cache.past_values, cache.past_length)
        config = self._config
        attributes = (config.num_heads, config.intermediate_size, self._biases, config.rms_norm_eps)
        x, keys, new_values = _run("pds_export_decoder", x, layout.cos, layout.sin, *past, values, *attributes)
        cache.stacked = keys, new_values
        return x
