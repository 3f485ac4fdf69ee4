"""What a conversion did to a tensor, found by comparing values and not by believing the plan."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints.base import DenseTensor, GroupedWeight, Int8Weight, Weight
from paddle_ds_slim.exporters.weights import part, row_blocks

Outcome = Literal["exact", "scale rounded", "rounded", "quantised", "requantised", "dequantised"]

#: each with its meaning, from the least loss to the most
OUTCOMES: dict[Outcome, str] = {
    "exact": "every value is as it was",
    "scale rounded": "the same integers; their scales were rounded to 16 bits",
    "rounded": "floating point rounded to a shorter type",
    "dequantised": "integers turned into floating point",
    "quantised": "floating point rounded to integers",
    "requantised": "integers rounded to other integers, a second time",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """``error`` is ``||after - before|| / ||before||`` over all weights of the tensor, Frobenius norms."""

    outcome: Outcome
    error: float
    num_weights: int


def compare(before: Weight, after: Weight) -> Comparison:
    """What became of ``before``. Two weights that are the same object are not read."""
    num_weights = before.values.size
    if after is before:
        return Comparison("exact", 0.0, num_weights)
    error = _relative_error(before, after)
    return Comparison(_outcome(before, after, error), error, num_weights)


def _outcome(before: Weight, after: Weight, error: float) -> Outcome:
    if isinstance(after, DenseTensor):
        if not isinstance(before, DenseTensor):
            return "dequantised"
        return "exact" if error == 0 else "rounded"
    if isinstance(before, DenseTensor):
        return "quantised"
    if error == 0:
        return "exact"
    return "scale rounded" if _has_same_integers(before, after) else "requantised"


def _relative_error(before: Weight, after: Weight) -> float:
    """0.0 only where every value is equal."""
    lost, size = 0.0, 0.0
    is_equal = True
    for rows in row_blocks(before):
        was, is_now = part(before, rows).to_float32(), part(after, rows).to_float32()
        is_equal = is_equal and np.array_equal(was, is_now)
        lost += float(np.square(is_now - was, dtype=np.float64).sum())
        size += float(np.square(was, dtype=np.float64).sum())
    if is_equal:
        return 0.0
    if size == 0:  # out of nothing came something
        return 1.0
    # squares of tiny values may vanish, but what differs differs
    return max(math.sqrt(lost / size), math.ulp(0.0))


def _has_same_integers(before: Int8Weight | GroupedWeight, after: Int8Weight | GroupedWeight) -> bool:
    return all(np.array_equal(_integers(part(before, rows)), _integers(part(after, rows))) for rows in row_blocks(before))


def _integers(weight: Weight) -> npt.NDArray[np.int16]:
    """The factors of the scales, int16 ``[out, in]``."""
    integers = weight.values.astype(np.int16)
    if isinstance(weight, GroupedWeight) and weight.zero_points is not None:
        integers -= weight.zero_points[:, weight.groups()]
    return integers
