"""Linear layers: what every implementation of them offers."""

from __future__ import annotations

from typing import Protocol

import paddle


class Linear(Protocol):
    """``layer(x)``: float32 [T, in] -> float32 [T, out]."""

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor: ...

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""


class Shared:
    """A layer whose weight belongs to another one, which counts its bytes."""

    def __init__(self, layer: Linear) -> None:
        self._layer = layer

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._layer(x)

    def weight_bytes(self) -> dict[str, int]:
        return {}


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
