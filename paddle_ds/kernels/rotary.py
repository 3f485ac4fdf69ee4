"""Rotary position embedding (arXiv 2104.09864), the layout of Qwen2 and Llama in Hugging Face files.

Element ``i`` of a head is paired with element ``i + D/2``::

    out[i]       = x[i]       * cos[i] - x[i + D/2] * sin[i]
    out[i + D/2] = x[i + D/2] * cos[i] + x[i]       * sin[i]
"""

from __future__ import annotations

import paddle


def reference(x: paddle.Tensor, cos: paddle.Tensor, sin: paddle.Tensor) -> paddle.Tensor:
    """``x`` float32 [T, heads, D], ``cos`` and ``sin`` float32 [T, D/2] -> float32 [T, heads, D]."""
    first, second = paddle.chunk(x, 2, axis=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return paddle.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)
