"""RMS normalisation bound to its weight."""

from __future__ import annotations

from collections.abc import Callable

import paddle

from paddle_ds.layers.linear import nbytes


class RMSNorm:
    """``layer(x)``: float32 [T, H] -> float32 [T, H]."""

    def __init__(self, weight: paddle.Tensor, eps: float, operator: Callable[..., paddle.Tensor]) -> None:
        self.weight = weight
        self._eps = eps
        self._operator = operator

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return self._operator(x, self.weight, self._eps)

    def weight_bytes(self) -> dict[str, int]:
        return {"float32": nbytes(self.weight)}
