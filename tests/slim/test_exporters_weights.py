"""One kind of weight as another, and how a change is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from checkpoints import makers
from paddle_ds.checkpoints import DenseTensor, GroupedWeight, Int8Weight
from paddle_ds.checkpoints.base import Groups
from paddle_ds.errors import QuantizationError
from paddle_ds_slim.exporters.comparison import compare
from paddle_ds_slim.exporters.weights import as_blocks, as_dense, as_per_channel, collapse, fits_blocks


def grouped(values: Any, scales: Any, **changes: Any) -> GroupedWeight:
    fields: dict[str, Any] = {"zero_points": None, "group_index": None, "bits": 8, "group_size": 2, **changes}
    return GroupedWeight(np.array(values, np.int8), np.array(scales, np.float32), **fields)


def test_groups_of_one_scale_collapse_and_groups_of_zeros_have_no_say() -> None:
    weight = grouped([[1, -2, 0, 0, 3], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], [[0.5, 9, 0.5], [0, 1, 1], [2, 1, 1]])
    collapsed = collapse(weight)
    assert collapsed is not None
    assert collapsed.values is weight.values
    assert collapsed.scales.tolist() == [0.5, 1.0, 2.0]
    np.testing.assert_array_equal(collapsed.to_float32(), weight.to_float32())


def test_groups_that_differ_do_not_collapse() -> None:
    assert collapse(grouped([[1, 2, 3, 4]], [[0.5, 0.25]])) is None
    zero_points = np.zeros((1, 2), np.int16)
    assert collapse(grouped([[1, 2, 3, 4]], [[0.5, 0.5]], zero_points=zero_points)) is None


def test_a_scale_of_zero_under_weights_stays_zero() -> None:
    collapsed = collapse(grouped([[1, 2, 3, 4]], [[0, 0]]))
    assert collapsed is not None
    assert not collapsed.to_float32().any()


@pytest.mark.parametrize(("first", "collapses"), [(0, True), (7, False)])
def test_groups_in_activation_order_are_looked_at_by_their_index(first: int, collapses: bool) -> None:
    index = np.array([1, 0, 1, 0], np.int32)
    weight = grouped([[1, first, 3, 0]], [[4, 0.5]], group_index=index)
    assert (collapse(weight) is not None) is collapses


@pytest.mark.parametrize(
    ("groups", "bits", "fits"),
    [
        (Groups(32, 4), 8, True),
        (Groups(64, 2), 4, True),
        (Groups(128, 1), 8, True),
        (Groups(48, 1), 4, True),
        (Groups(48, 2), 4, False),
        (Groups(16, 4), 4, False),
        (Groups(32, 4, has_index=True), 4, False),
        (Groups(32, 4, has_zero_points=True), 4, True),
        (Groups(32, 4, has_zero_points=True), 8, False),
    ],
)
def test_which_groups_blocks_of_32_can_hold(groups: Groups, bits: int, fits: bool) -> None:
    assert fits_blocks(groups, bits) is fits


def test_blocks_hold_four_bits_with_any_zero_point() -> None:
    values = np.resize(np.arange(-8, 8, dtype=np.int8), (2, 128))
    zero_points = np.array([[-8, 8], [0, 7]], np.int16)
    scales = np.array([[0.5, 0.25], [1, 2]], np.float32)
    weight = GroupedWeight(values, scales, zero_points, None, 4, 64)
    blocks = as_blocks(weight, "weight")
    assert (blocks.values.min(), blocks.values.max()) == (-16, 15)
    assert compare(weight, blocks).outcome == "exact"


def test_requantising_to_a_channel_is_rounding_the_dequantised_weight() -> None:
    random = np.random.default_rng(0)
    weight = grouped(random.integers(-8, 8, (4, 6)), random.uniform(0.1, 1, (4, 3)), bits=4)
    channel = as_per_channel(weight)
    integers, scales = makers.quantized(weight.to_float32())
    np.testing.assert_array_equal(channel.values, integers)
    np.testing.assert_array_equal(channel.scales, scales)
    assert compare(weight, channel).outcome == "requantised"


DENSE = DenseTensor(np.array([[1.0, 2**-12 + 1]], np.float32), "float32")
CHANNEL = Int8Weight(np.array([[3, -4]], np.int8), np.array([0.3], np.float32))


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (DENSE, DENSE, "exact"),
        (DENSE, as_dense(DENSE, "float16", "weight"), "rounded"),
        (DENSE, as_per_channel(DENSE), "quantised"),
        (CHANNEL, as_dense(CHANNEL, "float32", "weight"), "dequantised"),
        (CHANNEL, Int8Weight(CHANNEL.values.copy(), CHANNEL.scales), "exact"),
        (CHANNEL, Int8Weight(CHANNEL.values, np.array([0.25], np.float32)), "scale rounded"),
        (CHANNEL, Int8Weight(np.array([[3, -3]], np.int8), CHANNEL.scales), "requantised"),
        (CHANNEL, Int8Weight(np.array([[6, -8]], np.int8), CHANNEL.scales / 2), "exact"),
    ],
)
def test_outcomes_are_named_by_what_happened_to_the_values(before: Any, after: Any, outcome: str) -> None:
    comparison = compare(before, after)
    assert comparison.outcome == outcome
    difference = np.linalg.norm(after.to_float32() - before.to_float32()) / np.linalg.norm(before.to_float32())
    assert comparison.error == pytest.approx(float(difference), rel=1e-5)
    assert comparison.num_weights == 2


def test_differences_too_small_to_square_are_differences() -> None:
    before = DenseTensor(np.array([[1e-40, 1.0]], np.float32), "float32")
    after = DenseTensor(np.array([[0.0, 1.0]], np.float32), "float32")
    comparison = compare(before, after)
    assert comparison.outcome == "rounded"
    assert comparison.error > 0


def test_a_scale_beyond_float16_is_an_error() -> None:
    weight = Int8Weight(np.ones((1, 32), np.int8), np.array([1e5], np.float32))
    with pytest.raises(QuantizationError, match="the scales of head: found a value of 1e\\+05"):
        as_blocks(weight, "head")
