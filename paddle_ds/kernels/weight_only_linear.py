"""W8A16 linear layer: INT8 weights per output channel, activations left in floating point.

y[t, n] = (sum_k x[t, k] * w[n, k]) * w_scale[n] + bias[n]
"""

from __future__ import annotations

import paddle

from paddle_ds.kernels.reference_layer import ReferenceLayer

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


class ReferenceWeightOnlyLinear(ReferenceLayer):
    """A W8A16 layer on :func:`reference`."""

    operator = staticmethod(reference)
