"""Linear layer in floating point."""

from __future__ import annotations

import paddle


def reference(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """``x`` float32 [T, K], ``weight`` float32 [N, K], ``bias`` float32 [N] -> float32 [T, N]."""
    y = paddle.matmul(x, weight, transpose_y=True)
    return y if bias is None else y + bias
