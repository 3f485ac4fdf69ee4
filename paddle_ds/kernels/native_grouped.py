"""The compiled operator for grouped integer weights; see ``native.py`` for how such operators are loaded and called."""

from __future__ import annotations

import weakref

import numpy as np
import paddle

from paddle_ds.kernels import native
from paddle_ds.kernels.grouped_linear import FloatArray, GroupedArguments, Int8Array, Int16Array, Int32Array, pack


def in_group_order(given: GroupedArguments) -> tuple[Int32Array | None, Int32Array]:
    """How the operator wants the inputs.

    Returns:
        Which goes where, int32 [K], ``None``: as they are; and where groups begin, int32 [G + 1].
    """
    groups = given.group_of_column()
    order = None
    if (np.diff(groups) < 0).any():
        order = np.argsort(groups, kind="stable").astype(np.int32)
        groups = groups[order]
    return order, np.searchsorted(groups, np.arange(given.scales.shape[1] + 1)).astype(np.int32)


class NativeGroupedLinear:
    """W4A16 or W8A16 layer; same contract as ``grouped_linear.ReferenceGroupedLinear``.

    Inputs are put in order of their groups once, at load, where they are not; each call then puts its activations in that order.
    A row's result does not depend on the other rows or on the number of threads.
    """

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
        order, starts = in_group_order(given)
        self._library = native.library()
        arrays = (pack(values, bits, order), scales, zero_points, starts, order, bias)
        kept = [None if array is None else np.ascontiguousarray(array) for array in arrays]
        sizes = native.int64s((*values.shape, scales.shape[1], bits))
        self._handle = self._library.call("pds_pack_grouped", *map(native.address_of, kept), *sizes)
        self._finalizer = weakref.finalize(self, self._library.release, "pds_free_grouped", self._handle)
        self._bytes = given.weight_bytes(index_elements=starts.size + (0 if order is None else order.size))

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [T, K] -> float32 [T, N]."""
        return self._library.run("pds_grouped_linear", x, self._handle)[0]

    def weight_bytes(self) -> dict[str, int]:
        """Bytes kept in memory, by dtype."""
        return dict(self._bytes)
