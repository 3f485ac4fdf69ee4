"""Turning one kind of weight into another, row block by row block where floating point is needed.

A GGUF Q8_0 block is 32 consecutive inputs of one row: a float16 scale and 32 int8. In memory it is a
:class:`GroupedWeight` of group size 32 whose scales float16 can hold.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints.base import DenseTensor, GroupedWeight, Groups, Int8Weight, Weight
from paddle_ds.checkpoints.dtypes import NUMPY_DTYPES, Float32Array, count_not_finite, narrow, widen
from paddle_ds.checkpoints.rounding import INT8_MAX, quantize_dense, quantize_rows
from paddle_ds.errors import QuantizationError
from paddle_ds_slim.exporters.target import Planned

#: inputs of a Q8_0 block
BLOCK = 32

_ROW_BLOCK_ELEMENTS = 1 << 21


def row_blocks(weight: Weight) -> Iterator[slice]:
    """Slices of the first axis that hold some two million elements each."""
    rows = weight.shape[0]
    step = max(1, _ROW_BLOCK_ELEMENTS // max(1, weight.values.size // max(1, rows)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def part(weight: Weight, rows: slice) -> Weight:
    """Some rows of a weight, as views."""
    if isinstance(weight, DenseTensor):
        return DenseTensor(weight.values[rows], weight.dtype)
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.values[rows], weight.scales[rows])
    zero_points = None if weight.zero_points is None else weight.zero_points[rows]
    return GroupedWeight(
        weight.values[rows], weight.scales[rows], zero_points, weight.group_index, weight.bits, weight.group_size
    )


def converted(weight: Weight, planned: Planned, name: str) -> Weight:
    """``weight`` as ``planned``; the same object where it is that already.

    Raises:
        QuantizationError: a value is too large for the type.
    """
    if not planned.is_integer:
        return as_dense(weight, planned.dtype, name)
    if planned.groups is None:
        return _with_scales(as_per_channel(weight), planned.scale_dtype, name)
    if planned.groups == Groups(BLOCK, planned.groups.count) and planned.scale_dtype == "float16":
        return as_blocks(weight, name)
    assert isinstance(weight, GroupedWeight), f"{name}: nothing becomes {planned} but what is that already"
    return weight


def as_dense(weight: Weight, dtype: str, name: str) -> DenseTensor:
    """In floating point, of one of :data:`FLOATS`."""
    if isinstance(weight, DenseTensor) and weight.dtype == dtype:
        return weight
    values = np.empty(weight.shape, NUMPY_DTYPES[dtype])
    for rows in row_blocks(weight):
        values[rows] = _narrowed(part(weight, rows).to_float32(), dtype, name)
    return DenseTensor(values, dtype)


def as_per_channel(weight: Weight) -> Int8Weight:
    """INT8 with a scale per output channel: the same integers where there are some and they allow it, else rounded to nearest."""
    if isinstance(weight, Int8Weight):
        return weight
    if isinstance(weight, DenseTensor):
        return quantize_dense(weight)
    collapsed = collapse(weight)
    return collapsed if collapsed is not None else _requantised(weight)


def collapse(weight: GroupedWeight) -> Int8Weight | None:
    """The same weight with one scale per output channel, or ``None`` where the groups of some channel differ in theirs.

    A group whose integers are all zero has no say: any scale gives the same weights.
    """
    if weight.zero_points is not None:
        return None
    has_say = _groups_with_weights(weight)
    lowest = np.where(has_say, weight.scales, np.float32(np.inf)).min(axis=1)
    highest = np.where(has_say, weight.scales, np.float32(-np.inf)).max(axis=1)
    is_empty = ~has_say.any(axis=1)
    if not (is_empty | (lowest == highest)).all():
        return None
    scales = np.where(is_empty, weight.scales[:, 0], lowest)
    scales[is_empty & (scales == 0)] = 1.0
    return Int8Weight(weight.values, scales.astype(np.float32))


def as_blocks(weight: Weight, name: str) -> GroupedWeight:
    """In Q8_0 blocks: the same integers where :func:`fits_blocks`, else rounded to nearest.

    Raises:
        QuantizationError: a scale is too large for float16.
    """
    if isinstance(weight, GroupedWeight) and not fits_blocks(_groups_of(weight), weight.bits):
        weight = collapse(weight) or weight
    if isinstance(weight, Int8Weight):
        scales = np.repeat(weight.scales[:, None], weight.shape[1] // BLOCK, axis=1)
        return _blocks(weight.values, scales, name)
    if isinstance(weight, GroupedWeight) and fits_blocks(_groups_of(weight), weight.bits):
        return _widened(weight, name)
    integers = np.empty(weight.shape, np.int8)
    scales = np.empty((weight.shape[0], weight.shape[1] // BLOCK), np.float32)
    for rows in row_blocks(weight):
        integers[rows], scales[rows] = _nearest_blocks(part(weight, rows).to_float32())
    return _blocks(integers, scales, name)


def fits_blocks(groups: Groups, bits: int) -> bool:
    """Whether integers in such groups can stay as they are in Q8_0: a block of 32 must not see two groups.

    With zero points it is ``value - zero_point`` that is stored, which for 4 bits is within int8.
    """
    is_contiguous = not groups.has_index and (groups.count == 1 or groups.size % BLOCK == 0)
    return is_contiguous and (bits == 4 or not groups.has_zero_points)


def _groups_of(weight: GroupedWeight) -> Groups:
    return Groups(weight.group_size, weight.scales.shape[1], weight.zero_points is not None, weight.group_index is not None)


def _groups_with_weights(weight: GroupedWeight) -> npt.NDArray[np.bool_]:
    """bool ``[out, G]``: whether any integer of a group is not zero."""
    num_out, num_groups = weight.scales.shape
    found = np.zeros((num_out, num_groups), np.bool_)
    if weight.group_index is None:
        for group in range(num_groups):
            start = group * weight.group_size
            found[:, group] = weight.values[:, start : start + weight.group_size].any(axis=1)
        return found
    for group in range(num_groups):
        found[:, group] = weight.values[:, weight.group_index == group].any(axis=1)
    return found


def _requantised(weight: GroupedWeight) -> Int8Weight:
    integers = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[0], np.float32)
    for rows in row_blocks(weight):
        rounded = quantize_rows(part(weight, rows).to_float32())
        integers[rows], scales[rows] = rounded.values, rounded.scales
    return Int8Weight(integers, scales)


def _widened(weight: GroupedWeight, name: str) -> GroupedWeight:
    """Groups that are whole blocks, or one group in all, cut into blocks of 32."""
    first_of_block = np.arange(0, weight.shape[1], BLOCK)
    integers = weight.values
    if weight.zero_points is not None:
        integers = np.empty(weight.shape, np.int8)
        groups = weight.groups()
        for rows in row_blocks(weight):
            shifted = weight.values[rows].astype(np.int16) - weight.zero_points[rows][:, groups]
            assert np.abs(shifted).max(initial=0) <= INT8_MAX, f"{name}: zero points outside the range of 4 bits"
            integers[rows] = shifted
    return _blocks(integers, weight.scales[:, first_of_block // weight.group_size], name)


def _nearest_blocks(values: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Q8_0 as ggml rounds it: ``d = max|x| / 127``, ``q = round(x * (1 / d))``, half away from zero."""
    blocks = values.reshape(values.shape[0], -1, BLOCK)
    scales: Float32Array = np.abs(blocks).max(axis=2) / np.float32(INT8_MAX)
    is_normal = scales >= np.finfo(np.float32).tiny  # 1 / d overflows below, and float16 has no such d
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=is_normal)
    scaled = blocks * inverse[:, :, None]
    integers = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    return integers.astype(np.int8).reshape(values.shape), scales


def _blocks(integers: npt.NDArray[np.int8], scales: Float32Array, name: str) -> GroupedWeight:
    return GroupedWeight(integers, _narrowed_and_back(scales, "float16", name), None, None, 8, BLOCK)


def _with_scales(weight: Int8Weight, dtype: str, name: str) -> Int8Weight:
    if dtype == "float32":
        return weight
    return Int8Weight(weight.values, _narrowed_and_back(weight.scales, dtype, name))


def _narrowed_and_back(values: Float32Array, dtype: str, name: str) -> Float32Array:
    return widen(_narrowed(values, dtype, f"the scales of {name}"), dtype)


def _narrowed(values: Float32Array, dtype: str, what: str) -> npt.NDArray[np.generic]:
    with np.errstate(over="ignore"):
        narrowed = narrow(values, dtype)
    if count_not_finite(narrowed, dtype):
        largest = float(np.abs(values).max())
        raise QuantizationError(f"{what}: found a value of {largest:.4g}, more than {dtype} holds; convert to another type")
    return narrowed
