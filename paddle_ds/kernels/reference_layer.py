"""An INT8 weight in Paddle's memory, for the reference operators that multiply by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import paddle

Int8Array = npt.NDArray[np.int8]
#: a weight [N, K]: one array, or pieces of it one below the other
Int8Rows = Int8Array | Iterable[Int8Array]


def stack(weight: Int8Rows) -> Int8Array:
    """All rows as one array."""
    if isinstance(weight, np.ndarray):
        return weight
    pieces = list(weight)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class ReferenceLayer:
    """A layer on a reference operator, which subclasses name.

    Args:
        weight: int8 [N, K], whole or in pieces.
        weight_scale, bias: float32 [N].
    """

    operator: Callable[..., paddle.Tensor]

    def __init__(self, weight: Int8Rows, weight_scale: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None) -> None:
        self._weight = paddle.to_tensor(np.ascontiguousarray(stack(weight)))
        self._weight_scale = paddle.to_tensor(weight_scale)
        self._bias = None if bias is None else paddle.to_tensor(bias)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]."""
        return type(self).operator(x, self._weight, self._weight_scale, self._bias)

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""
        small = self._weight_scale.size + (0 if self._bias is None else self._bias.size)
        return {"int8": int(self._weight.size), "float32": 4 * int(small)}
