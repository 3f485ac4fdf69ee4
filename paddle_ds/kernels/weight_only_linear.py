"""W8A16 linear layer: INT8 weights per output channel, activations left in floating point.

y[t, n] = (sum_k x[t, k] * w[n, k]) * w_scale[n] + bias[n]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle

#: weight elements converted to float32 at a time, which bounds the temporary memory (4 bytes each)
_MAX_CONVERTED_ELEMENTS = 1 << 24


def reference(x: paddle.Tensor, weight: paddle.Tensor, weight_scale: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """``x`` float32 [T, K], ``weight`` int8 [N, K], ``weight_scale`` float32 [N], ``bias`` float32 [N] -> float32 [T, N]."""
    num_out, num_in = weight.shape
    rows = max(1, _MAX_CONVERTED_ELEMENTS // num_in)
    pieces = [
        paddle.matmul(x, weight[start : start + rows].astype("float32"), transpose_y=True) for start in range(0, num_out, rows)
    ]
    y = (pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=-1)) * weight_scale
    return y if bias is None else y + bias


class ReferenceWeightOnlyLinear:
    """A W8A16 layer on :func:`reference`: ``weight`` int8 [N, K], scale and bias float32 [N]."""

    def __init__(
        self, weight: npt.NDArray[np.int8], weight_scale: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None
    ) -> None:
        self._weight = paddle.to_tensor(np.ascontiguousarray(weight))
        self._weight_scale = paddle.to_tensor(weight_scale)
        self._bias = None if bias is None else paddle.to_tensor(bias)

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]."""
        return reference(x, self._weight, self._weight_scale, self._bias)

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""
        small = self._weight_scale.size + (0 if self._bias is None else self._bias.size)
        return {"int8": int(self._weight.size), "float32": 4 * int(small)}
