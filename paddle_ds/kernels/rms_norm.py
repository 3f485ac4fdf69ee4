"""Root-mean-square normalisation (arXiv 1910.07467): ``x / sqrt(mean(x^2) + eps) * weight``."""

from __future__ import annotations

import paddle


def reference(x: paddle.Tensor, weight: paddle.Tensor, eps: float) -> paddle.Tensor:
    """``x`` float32 [T, H], ``weight`` float32 [H] -> float32 [T, H]."""
    variance = (x * x).mean(axis=-1, keepdim=True)
    return x * paddle.rsqrt(variance + eps) * weight
