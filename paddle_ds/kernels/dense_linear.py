"""Linear layer in floating point."""

from __future__ import annotations

import paddle


def reference(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """``x`` float32 [T, K], ``weight`` float32 [N, K], ``bias`` float32 [N] -> float32 [T, N]."""
    y = paddle.matmul(x, weight, transpose_y=True)
    return y if bias is None else y + bias


class ReferenceDenseLinear:
    """A float32 layer on :func:`reference`: ``weight`` float32 [N, K], ``bias`` float32 [N] or ``None``."""

    def __init__(self, weight: paddle.Tensor, bias: paddle.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]."""
        return reference(x, self._weight, self._bias)

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""
        return {"float32": 4 * int(self._weight.size + (0 if self._bias is None else self._bias.size))}
