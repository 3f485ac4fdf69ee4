"""W4A16 and W8A16 linear layer with a scale per group of inputs, activations left in floating point.

y[t, n] = sum_k x[t, k] * w[n, k] + bias[n]        w[n, k] = (q[n, k] - zero_point[n, g(k)]) * scale[n, g(k)]

Weights of 4 bits are kept two to a byte, the first half of a row in the low nibbles, the second half in the high ones, so that
either half unpacks without shuffling. A nibble holds q + 8; the last high nibble of a row of odd length is padding.

    K = 7        byte      0    1    2    3
                 low      q0   q1   q2   q3
                 high     q4   q5   q6   padding
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import paddle

#: weight elements dequantised at a time, which bounds the temporary memory (some 20 bytes each)
_MAX_CONVERTED_ELEMENTS = 1 << 22

#: what is added to a weight of 4 bits to have it in a nibble
_NIBBLE_OFFSET = 8

Int8Array = npt.NDArray[np.int8]
Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class GroupedArguments:
    """What a layer is made from, in the order in which the registry's callers give it; ``bits`` is 4 or 8.

    Attributes:
        values: int8 [N, K], in -8..7 for 4 bits.
        scales: float32 [N, G] with G = ceil(K / group_size).
        zero_points: int16 [N, G]; ``None``: all 0.
        group_index: int32 [K], the group of each input; ``None``: input k is in group k // group_size.
        bias: float32 [N] or ``None``.
    """

    values: Int8Array
    scales: FloatArray
    zero_points: Int16Array | None
    group_index: Int32Array | None
    group_size: int
    bits: int
    bias: FloatArray | None

    def __post_init__(self) -> None:
        num_out, num_in = self.values.shape
        assert self.values.dtype == np.int8
        assert self.bits in (4, 8)
        assert self.group_size >= 1
        assert self.scales.dtype == np.float32
        assert self.scales.shape == (num_out, -(-num_in // self.group_size))
        assert self.zero_points is None or self.zero_points.dtype == np.int16
        assert self.zero_points is None or self.zero_points.shape == self.scales.shape
        assert self.group_index is None or self.group_index.dtype == np.int32
        assert self.group_index is None or self.group_index.shape == (num_in,)
        assert self.group_index is None or 0 <= self.group_index.min() <= self.group_index.max() < self.scales.shape[1]
        assert self.bias is None or self.bias.shape == (num_out,)

    def group_of_column(self) -> Int32Array:
        """The group of each input, int32 [K]."""
        if self.group_index is not None:
            return self.group_index
        return np.arange(self.values.shape[1], dtype=np.int32) // np.int32(self.group_size)

    def weight_bytes(self, *, index_elements: int) -> dict[str, int]:
        """Bytes kept in memory, by dtype, with ``index_elements`` int32 that say where the groups are."""
        num_out, num_in = self.values.shape
        integers = {"int4": num_out * _packed_width(num_in)} if self.bits == 4 else {"int8": num_out * num_in}
        zero_points = {} if self.zero_points is None else {"int16": 2 * self.zero_points.size}
        floats = self.scales.size + (0 if self.bias is None else self.bias.size)
        return {**integers, "float32": 4 * floats, **zero_points, "int32": 4 * index_elements}


def _packed_width(num_in: int) -> int:
    return -(-num_in // 2)


def pack(values: Int8Array, bits: int, order: Int32Array | None = None) -> npt.NDArray[np.uint8] | Int8Array:
    """``values`` int8 [N, K] as a layer keeps them: uint8 [N, ceil(K / 2)] for 4 bits, C-contiguous int8 [N, K] for 8.

    Args:
        order: int32 [K]; column j of the result is column ``order[j]`` of ``values``.
    """
    num_out, num_in = values.shape
    half = _packed_width(num_in)
    packed = np.zeros((num_out, half), np.uint8) if bits == 4 else np.empty((num_out, num_in), np.int8)
    rows = max(1, _MAX_CONVERTED_ELEMENTS // num_in)
    for start in range(0, num_out, rows):
        block = values[start : start + rows]
        if order is not None:
            block = block[:, order]
        if bits == 4:
            assert -8 <= block.min() <= block.max() <= 7
            nibbles = (block + np.int8(_NIBBLE_OFFSET)).view(np.uint8)
            packed[start : start + rows] = nibbles[:, :half]
            packed[start : start + rows, : num_in - half] |= nibbles[:, half:] << np.uint8(4)
        else:
            packed[start : start + rows] = block
    return packed


def _unpack(packed: paddle.Tensor, num_in: int) -> paddle.Tensor:
    """uint8 [rows, ceil(K / 2)] or int8 [rows, K] -> float32 [rows, K]."""
    if packed.dtype == paddle.int8:
        return packed.astype("float32")
    low = paddle.bitwise_and(packed, paddle.full_like(packed, 15))
    high = paddle.bitwise_right_shift(packed, paddle.full_like(packed, 4))
    # widened first: a program that is exported cannot join uint8
    return paddle.concat([low.astype("float32"), high.astype("float32")], axis=1)[:, :num_in] - _NIBBLE_OFFSET


def dequantize(
    packed: paddle.Tensor, scales: paddle.Tensor, zero_points: paddle.Tensor | None, group_of_column: paddle.Tensor
) -> paddle.Tensor:
    """The weights that :func:`reference` multiplies by, float32 [N, K]; arguments as there."""
    weight = _unpack(packed, group_of_column.shape[0])
    if zero_points is not None:  # no int16 in index_select
        weight = weight - paddle.index_select(zero_points.astype("float32"), group_of_column, axis=1)
    return weight * paddle.index_select(scales, group_of_column, axis=1)


def reference(
    x: paddle.Tensor,
    packed: paddle.Tensor,
    scales: paddle.Tensor,
    zero_points: paddle.Tensor | None,
    group_of_column: paddle.Tensor,
    bias: paddle.Tensor | None,
) -> paddle.Tensor:
    """float32 [T, K] -> float32 [T, N].

    Args:
        packed: uint8 [N, ceil(K / 2)] for 4 bits, int8 [N, K] for 8; see :func:`pack`.
        scales: float32 [N, G]; ``zero_points``: int16 [N, G] or ``None``.
        group_of_column: int32 [K].
        bias: float32 [N] or ``None``.
    """
    num_out, num_in = packed.shape[0], group_of_column.shape[0]
    rows = max(1, _MAX_CONVERTED_ELEMENTS // num_in)
    pieces = []
    for start in range(0, num_out, rows):
        zeros = None if zero_points is None else zero_points[start : start + rows]
        weight = dequantize(packed[start : start + rows], scales[start : start + rows], zeros, group_of_column)
        pieces.append(paddle.matmul(x, weight, transpose_y=True))
    y = pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=-1)
    return y if bias is None else y + bias


class ReferenceGroupedLinear:
    """A layer on :func:`reference`; arguments: see :class:`GroupedArguments`."""

    def __init__(
        self,
        values: Int8Array,
        scales: FloatArray,
        zero_points: Int16Array | None,
        group_index: Int32Array | None,
        group_size: int,
        bits: int,
        bias: FloatArray | None,
    ) -> None:
        given = GroupedArguments(values, scales, zero_points, group_index, group_size, bits, bias)
        self._packed = paddle.to_tensor(pack(values, bits))
        self._scales = paddle.to_tensor(scales)
        self._zero_points = None if zero_points is None else paddle.to_tensor(zero_points)
        self._group_of_column = paddle.to_tensor(given.group_of_column())
        self._bias = None if bias is None else paddle.to_tensor(bias)
        self._bytes = given.weight_bytes(index_elements=values.shape[1])

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]."""
        return reference(x, self._packed, self._scales, self._zero_points, self._group_of_column, self._bias)

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""
        return dict(self._bytes)
