"""Linear layers: weights as they are kept in memory, and the operator that multiplies by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import paddle


class Linear(Protocol):
    """``layer(x)``: float32 [T, in] -> float32 [T, out]."""

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor: ...

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""


class Int8Linear:
    """INT8 weight ``[out, in]`` with one scale per output channel; the operator decides what happens to activations."""

    def __init__(
        self,
        weight: paddle.Tensor,
        weight_scale: paddle.Tensor,
        bias: paddle.Tensor | None,
        operator: Callable[..., paddle.Tensor],
    ) -> None:
        assert list(weight_scale.shape) == [weight.shape[0]]
        self._weight = weight
        self._weight_scale = weight_scale
        self._bias = bias
        self._operator = operator

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._operator(x, self._weight, self._weight_scale, self._bias)

    def weight_bytes(self) -> dict[str, int]:
        bias_bytes = 0 if self._bias is None else nbytes(self._bias)
        return {"int8": nbytes(self._weight), "float32": nbytes(self._weight_scale) + bias_bytes}


class DenseLinear:
    """Floating-point weight ``[out, in]``."""

    def __init__(self, weight: paddle.Tensor, bias: paddle.Tensor | None, operator: Callable[..., paddle.Tensor]) -> None:
        self._weight = weight
        self._bias = bias
        self._operator = operator

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._operator(x, self._weight, self._bias)

    def weight_bytes(self) -> dict[str, int]:
        bias_bytes = 0 if self._bias is None else nbytes(self._bias)
        return {dtype_name(self._weight): nbytes(self._weight) + bias_bytes}


class SideBySide:
    """Several layers over one input whose outputs are joined: a stack whose parts run in different schemes."""

    def __init__(self, parts: list[Linear]) -> None:
        self._parts = parts

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.concat([part(x) for part in self._parts], axis=-1)

    def weight_bytes(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for part in self._parts:
            for dtype, count in part.weight_bytes().items():
                total[dtype] = total.get(dtype, 0) + count
        return total


def nbytes(tensor: paddle.Tensor) -> int:
    """Bytes of a tensor's elements."""
    return int(tensor.size) * int(tensor.element_size())


def dtype_name(tensor: paddle.Tensor) -> str:
    """``float32``, ``bfloat16`` …"""
    return str(tensor.dtype).rpartition(".")[2]
