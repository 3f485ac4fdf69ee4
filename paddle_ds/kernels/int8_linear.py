"""W8A8 linear layer: INT8 weights per output channel, INT8 activations per token, exact int32 accumulation.

    a_scale[t]  = max|x[t, :]| / 127                                (1 where the row is zero)
    a[t, k]     = round_half_even(x[t, k] * (127 / max|x[t, :]|))   in -127 .. 127
    acc[t, n]   = sum_k a[t, k] * w[n, k]                        int32, exact
    y[t, n]     = acc[t, n] * a_scale[t] * w_scale[n] + bias[n]

Because ``acc`` is exact and ``a_scale`` looks at one token only, a token's result does not depend on its neighbours.
"""

from __future__ import annotations

import paddle

from paddle_ds.kernels.reference_layer import ReferenceLayer

#: products of two INT8 values that a float32 sum holds exactly: 1024 * 127 * 127 < 2**24
_EXACT_PRODUCTS = 1024
#: weight elements converted to float32 at a time, which bounds the temporary memory (4 bytes each)
_MAX_CONVERTED_ELEMENTS = 1 << 24
#: a row whose largest magnitude is below this counts as zero: 127 divided by it would overflow
ZERO_BELOW = 1e-30


def quantize_activations(x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """float32 [T, K] -> integers as float32 [T, K], scales float32 [T, 1]."""
    absmax = x.abs().max(axis=-1, keepdim=True)
    one = paddle.ones_like(absmax)
    nothing = absmax < ZERO_BELOW  # false for NaN, which must reach the logits and be found there
    scale = paddle.where(nothing, one, absmax / 127.0)
    inverse = paddle.where(nothing, one, 127.0 / absmax)
    return paddle.clip(paddle.round(x * inverse), -127, 127), scale


def reference(x: paddle.Tensor, weight: paddle.Tensor, weight_scale: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """``x`` float32 [T, K], ``weight`` int8 [N, K], ``weight_scale`` float32 [N], ``bias`` float32 [N] -> float32 [T, N].

    Plain Paddle has no INT8 matrix product on a CPU. Integers of this size are exact in float32 as long as a partial
    sum stays below 2**24, so K is cut into pieces of 1024 and the pieces are added as int32.
    """
    quantized, scale = quantize_activations(x)
    num_out, num_in = weight.shape
    rows = max(1, _MAX_CONVERTED_ELEMENTS // num_in)
    pieces = [_accumulate(quantized, weight[start : start + rows]) for start in range(0, num_out, rows)]
    accumulated = pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=-1)
    y = accumulated.astype("float32") * scale * weight_scale
    return y if bias is None else y + bias


def _accumulate(quantized: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    num_in = weight.shape[1]
    if num_in <= _EXACT_PRODUCTS:
        return paddle.matmul(quantized, weight.astype("float32"), transpose_y=True)
    total = None
    for start in range(0, num_in, _EXACT_PRODUCTS):
        stop = min(start + _EXACT_PRODUCTS, num_in)
        partial = paddle.matmul(quantized[:, start:stop], weight[:, start:stop].astype("float32"), transpose_y=True)
        partial = partial.astype("int32")
        total = partial if total is None else total + partial
    assert total is not None
    return total


class ReferenceInt8Linear(ReferenceLayer):
    """A W8A8 layer on :func:`reference`."""

    operator = staticmethod(reference)
