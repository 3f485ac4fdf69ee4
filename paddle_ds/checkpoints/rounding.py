"""Round-to-nearest INT8: symmetric, one scale per output channel, no calibration."""

from __future__ import annotations

import numpy as np

from paddle_ds.checkpoints.base import DenseTensor, Int8Weight
from paddle_ds.checkpoints.dtypes import Array, Float32Array, widen

#: largest magnitude of an INT8 weight; -128 is not used, so that negation is exact
INT8_MAX = 127

_CHUNK_BYTES = 8 << 20


def quantize_rows(values: Float32Array) -> Int8Weight:
    """INT8 weight nearest to ``values``, float32 ``[out, in]``.

    ``scale[o] = max(abs(values[o])) / 127`` and ``q = round_half_even(values / scale)`` in ``-127..127``; a row of
    zeros gets scale 1. Works row block by row block: beside the result it needs some 8 MB.

    Raises:
        ValueError: NaN or infinity.
    """
    return _quantize(values, "float32")


def quantize_dense(tensor: DenseTensor) -> Int8Weight:
    """:func:`quantize_rows` of a stored tensor ``[out, in]``, widened block by block and never as a whole.

    Raises:
        ValueError: NaN or infinity.
    """
    return _quantize(tensor.values, tensor.dtype)


def _quantize(values: Array, dtype: str) -> Int8Weight:
    num_out, num_in = values.shape
    integers = np.empty((num_out, num_in), np.int8)
    scales = np.empty(num_out, np.float32)
    block_rows = max(1, _CHUNK_BYTES // max(1, 4 * num_in))
    buffer = np.empty((min(block_rows, num_out), num_in), np.float32)
    for start in range(0, num_out, block_rows):
        block = widen(values[start : start + block_rows], dtype)
        stop = start + block.shape[0]
        scale = _row_scales(block)
        if not np.isfinite(scale).all():
            row = start + int(np.flatnonzero(~np.isfinite(scale))[0])
            raise ValueError(f"row {row} holds NaN or infinity")
        scaled = np.divide(block, scale[:, None], out=buffer[: stop - start])
        np.rint(scaled, out=scaled)
        # a scale in the subnormal range is too coarse for its row: 127 can become 128 there
        np.clip(scaled, -INT8_MAX, INT8_MAX, out=scaled)
        integers[start:stop] = scaled
        scales[start:stop] = scale
    return Int8Weight(integers, scales)


def _row_scales(block: Float32Array) -> Float32Array:
    """float32 ``[rows]``; not finite where the row is not."""
    if block.shape[1] == 0:
        return np.ones(block.shape[0], np.float32)
    largest = np.maximum(block.max(axis=1), -block.min(axis=1))
    scale: Float32Array = largest / np.float32(INT8_MAX)
    scale[scale == 0] = 1.0
    return scale
