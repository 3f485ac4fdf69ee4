"""Weights with groups of inputs as GPTQ and AWQ store them, packed without the code under test."""

from __future__ import annotations

import dataclasses

import numpy as np
from makers import Tensors


@dataclasses.dataclass(frozen=True)
class Grouped:
    """A weight of unsigned integers with a scale and a zero point for each group of inputs, and what it stands for."""

    integers: np.ndarray  # [out, in]
    scales: np.ndarray  # float16 [out, G]
    zeros: np.ndarray  # [out, G]
    index: np.ndarray  # int32 [in]

    @property
    def weight(self) -> np.ndarray:
        """float32 ``[out, in]``: an integer of 9 bits times a scale of 11 bits is exact."""
        steps = self.integers - self.zeros[:, self.index]
        return steps.astype(np.float32) * self.scales.astype(np.float32)[:, self.index]


def grouped(values: np.ndarray, bits: int, index: np.ndarray, symmetric: bool) -> Grouped:
    """Plain round-to-nearest of float32 ``[out, in]``; ``index`` is the group of each input. Some zero points are 0."""
    values = values.copy()
    values[::3] = np.abs(values[::3])  # has no negative value: asymmetric, its zero point is 0
    top, half = (1 << bits) - 1, 1 << (bits - 1)
    groups = [values[:, index == number] for number in range(index.max() + 1)]
    if symmetric:
        scales = np.stack([np.abs(group).max(axis=1) / (half - 1) for group in groups], axis=1).astype(np.float16)
        zeros = np.full(scales.shape, half)
    else:
        low = np.stack([group.min(axis=1).clip(max=0) for group in groups], axis=1)
        high = np.stack([group.max(axis=1).clip(min=0) for group in groups], axis=1)
        scales = ((high - low) / top).astype(np.float16)
        zeros = np.rint(-low / scales.astype(np.float32)).astype(np.int64).clip(0, top)
    steps = np.rint(values / scales.astype(np.float32)[:, index]).astype(np.int64)
    return Grouped((steps + zeros[:, index]).clip(0, top), scales, zeros, index.astype(np.int32))


def packed_words(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Unsigned integers ``[rows, n]`` -> int32 ``[rows, words]``; lane ``i`` of a word holds the value at ``order[i]``."""
    lanes = 32 // bits
    rows, count = values.shape
    padded = np.zeros((rows, -(-count // lanes) * lanes), np.uint64)
    padded[:, :count] = values
    packed = np.zeros((rows, padded.shape[1] // lanes), np.uint64)
    for lane, offset in enumerate(order or range(lanes)):
        packed |= padded[:, offset::lanes] << np.uint64(bits * lane)
    return packed.astype(np.uint32).view(np.int32)


def gptq_parts(weight: Grouped, bits: int, is_v2: bool = False) -> Tensors:
    """The tensors of one linear by what follows the module's name."""
    zeros = packed_words(weight.zeros.T, bits).view(np.uint32)
    if not is_v2:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        zeros = ((zeros.astype(np.int64) - ones) % (1 << 32)).astype(np.uint32)
    return {
        "qweight": np.ascontiguousarray(packed_words(weight.integers, bits).T),
        "qzeros": zeros.view(np.int32),
        "scales": np.ascontiguousarray(weight.scales.T),
        "g_idx": weight.index,
    }


def awq_parts(weight: Grouped) -> Tensors:
    """The tensors of one linear by what follows the module's name."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": packed_words(weight.integers.T, 4, order),
        "qzeros": packed_words(weight.zeros.T, 4, order),
        "scales": np.ascontiguousarray(weight.scales.T),
    }
