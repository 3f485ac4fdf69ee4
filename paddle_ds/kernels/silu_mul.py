"""The gate of the MLP: ``silu(gate) * up`` on the two halves of one tensor (SwiGLU, arXiv 2002.05202)."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F


def reference(gate_up: paddle.Tensor) -> paddle.Tensor:
    """float32 [T, 2 * I], gate first -> float32 [T, I]."""
    gate, up = paddle.chunk(gate_up, 2, axis=-1)
    return F.silu(gate) * up
