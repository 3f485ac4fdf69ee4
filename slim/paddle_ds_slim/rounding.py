"""Integers for weights, and what a runtime makes of activations: the arithmetic that every step measures itself by.

    channel  s[o] = r * max|w[o, :]| / qmax                       q = clip(round(w / s), -qmax, qmax)
    group    s[o, g] = r * max|w[o, group g]| / qmax              the same within each group of inputs
    token    s[t] = max|x[t, :]| / 127                            as ``kernels/int8_linear.py`` does at run time

``qmax`` is 127 for 8 bits and 7 for 4 bits, ``r`` is 1 unless a step cut the range, rounding is half to even.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from paddle_ds.checkpoints.base import DenseTensor, GroupedWeight, Int8Weight, Weight
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.checkpoints.rounding import quantize_rows
from paddle_ds.config.recipe import Scheme

_QMAX = {4: 7, 8: 127}
_ROW_BLOCK_ELEMENTS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Format:
    """How the weight of one layer becomes integers. ``group_size`` is ``None`` for one scale an output channel."""

    scheme: Scheme
    group_size: int | None = None

    @property
    def bits(self) -> int:
        return 4 if self.scheme == "w4a16" else 8

    @property
    def qmax(self) -> int:
        return _QMAX[self.bits]

    def num_groups(self, num_in: int) -> int:
        return 1 if self.group_size is None else num_in // self.group_size


def fitting_group_size(num_in: int, wanted: int | None) -> int | None:
    """``wanted``, or where it does not divide ``num_in`` the largest size of at least half of it that does, or ``None``."""
    if wanted is None or wanted >= num_in:
        return None
    return next((size for size in range(wanted, wanted // 2 - 1, -1) if num_in % size == 0), None)


def absmax_scales(weight: Float32Array, form: Format) -> Float32Array:
    """float32 ``[out, in]`` -> ``[out, G]``; a group of zeros gets scale 1."""
    num_out, num_in = weight.shape
    groups = np.abs(weight).reshape(num_out, form.num_groups(num_in), -1)
    scales: Float32Array = groups.max(axis=2) / np.float32(form.qmax)
    scales[scales == 0] = 1.0
    return scales


def to_integers(weight: Float32Array, scales: Float32Array, form: Format) -> Weight:
    """Round to nearest with the given scales ``[out, G]``.

    Raises:
        ValueError: NaN or infinity.
    """
    if not np.isfinite(scales).all():
        raise ValueError("NaN or infinity")
    num_out, num_in = weight.shape
    values = np.empty((num_out, num_in), np.int8)
    rows = max(1, _ROW_BLOCK_ELEMENTS // max(1, num_in))
    for start in range(0, num_out, rows):
        block = weight[start : start + rows].reshape(-1, scales.shape[1], num_in // scales.shape[1])
        scaled = block / scales[start : start + rows, :, None]
        np.rint(scaled, out=scaled)
        np.clip(scaled, -form.qmax, form.qmax, out=scaled)
        values[start : start + rows] = scaled.reshape(-1, num_in)
    return assembled(values, scales, form)


def assembled(values: np.ndarray[tuple[int, int], np.dtype[np.int8]], scales: Float32Array, form: Format) -> Weight:
    """Integers ``[out, in]`` and scales ``[out, G]`` as a weight of ``form``."""
    if form.bits == 8 and form.group_size is None:
        return Int8Weight(values, np.ascontiguousarray(scales[:, 0]))
    return GroupedWeight(values, scales, None, None, form.bits, form.group_size or values.shape[1])


def rounded(weight: Float32Array, form: Format, scales: Float32Array | None = None) -> Weight:
    """``weight`` as ``form`` holds it, by round-to-nearest; dense stays as it is."""
    if form.scheme == "dense":
        return DenseTensor(weight, "float32")
    if scales is None and form.bits == 8 and form.group_size is None:
        return quantize_rows(weight)
    return to_integers(weight, absmax_scales(weight, form) if scales is None else scales, form)


def fake_tokens(x: Float32Array) -> Float32Array:
    """Activations ``[T, K]`` after a trip through INT8, one scale a token."""
    largest = np.abs(x).max(axis=1, keepdims=True, initial=0.0)
    nothing = largest < 1e-30
    inverse = np.where(nothing, 1, np.float32(127) / np.where(nothing, 1, largest))
    scale = np.where(nothing, 1, largest / np.float32(127)).astype(np.float32)
    result: Float32Array = np.clip(np.rint(x * inverse.astype(np.float32)), -127, 127) * scale
    return result


def as_run(x: Float32Array, scheme: Scheme) -> Float32Array:
    """Activations as a layer of ``scheme`` multiplies them."""
    return fake_tokens(x) if scheme == "w8a8" else x


def relative_error(exact: Float32Array, found: Float32Array) -> float:
    """``||found - exact|| / ||exact||`` (Frobenius); 0 where both are 0."""
    norm = float(np.linalg.norm(exact))
    difference = float(np.linalg.norm(found - exact))
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))
