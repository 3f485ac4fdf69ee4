"""An INT8 weight in Paddle's memory, for the reference operators that multiply by it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import paddle


class ReferenceLayer:
    """A layer on a reference operator: ``weight`` int8 [N, K], scale and bias float32 [N]. Subclasses name the operator."""

    operator: Callable[..., paddle.Tensor]

    def __init__(
        self, weight: npt.NDArray[np.int8], weight_scale: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None
    ) -> None:
        self._weight = paddle.to_tensor(np.ascontiguousarray(weight))
        self._weight_scale = paddle.to_tensor(weight_scale)
        self._bias = None if bias is None else paddle.to_tensor(bias)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]."""
        return type(self).operator(x, self._weight, self._weight_scale, self._bias)

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""
        small = self._weight_scale.size + (0 if self._bias is None else self._bias.size)
        return {"int8": int(self._weight.size), "float32": 4 * int(small)}
