"""Linear layer in floating point. A bfloat16 weight stays one in memory and is widened as it is multiplied."""

from __future__ import annotations

import paddle

#: weight elements converted to float32 at a time, which bounds the temporary memory (4 bytes each)
_MAX_CONVERTED_ELEMENTS = 1 << 24


def reference(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """``x`` float32 [T, K], ``weight`` float32 or bfloat16 [N, K], ``bias`` float32 [N] -> float32 [T, N]."""
    num_out, num_in = weight.shape
    rows = num_out if weight.dtype == paddle.float32 else max(1, _MAX_CONVERTED_ELEMENTS // num_in)
    pieces = [
        paddle.matmul(x, weight[start : start + rows].astype("float32"), transpose_y=True) for start in range(0, num_out, rows)
    ]
    y = pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=-1)
    return y if bias is None else y + bias


def weight_bytes(weight: paddle.Tensor, bias: paddle.Tensor | None) -> dict[str, int]:
    """Bytes kept in memory, by dtype."""
    small = 0 if bias is None else 4 * int(bias.size)
    if weight.dtype == paddle.float32:
        return {"float32": 4 * int(weight.size) + small}
    return {"bfloat16": 2 * int(weight.size), **({"float32": small} if small else {})}


class ReferenceDenseLinear:
    """A layer on :func:`reference`: ``weight`` float32 or bfloat16 [N, K], ``bias`` float32 [N] or ``None``."""

    def __init__(self, weight: paddle.Tensor, bias: paddle.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]."""
        return reference(x, self._weight, self._bias)

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""
        return weight_bytes(self._weight, self._bias)
