"""Round-to-nearest against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from paddle_ds.checkpoints import DenseTensor, rounding
from paddle_ds.checkpoints.rounding import quantize_dense, quantize_rows


def reference(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition, row by row, in float32."""
    scales = np.array([np.float32(np.abs(row).max()) / np.float32(127) if row.any() else 1 for row in values], np.float32)
    return np.rint(values / scales[:, None]).astype(np.int8), scales


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (33, 65), (0, 4)], ids=str)
def test_matches_the_definition(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    integers, scales = reference(values) if shape[0] else (np.empty(shape, np.int8), np.empty(0, np.float32))
    weight = quantize_rows(values)
    np.testing.assert_array_equal(weight.values, integers)
    np.testing.assert_array_equal(weight.scales, scales)
    assert weight.values.dtype == np.int8
    assert weight.scales.dtype == np.float32


def test_blocks_give_the_same_as_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32)
    whole = quantize_rows(values)
    monkeypatch.setattr(rounding, "_CHUNK_BYTES", 7 * 16 * 4)
    blocks = quantize_rows(values)
    np.testing.assert_array_equal(whole.values, blocks.values)
    np.testing.assert_array_equal(whole.scales, blocks.scales)


def test_rounds_half_to_even() -> None:
    weight = quantize_rows(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32))
    assert weight.values.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_a_row_of_zeros_gets_scale_one() -> None:
    weight = quantize_rows(np.zeros((2, 3), np.float32))
    assert weight.scales.tolist() == [1, 1]
    assert not weight.values.any()


def test_never_uses_minus_128_even_for_subnormal_rows() -> None:
    tiny = np.array([[-3e-43, 1e-44, 0], [-1e-45, 1e-45, 0]], np.float32)
    assert quantize_rows(tiny).values.min() >= -127


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_refuses_values_that_are_not_finite(bad: float) -> None:
    values = np.ones((4, 4), np.float32)
    values[2, 1] = bad
    with pytest.raises(ValueError, match="row 2"):
        quantize_rows(values)


def test_error_is_at_most_half_a_step() -> None:
    values = np.random.default_rng(2).normal(size=(16, 64)).astype(np.float32)
    weight = quantize_rows(values)
    assert (np.abs(weight.to_float32() - values) <= weight.scales[:, None] * 0.5001).all()


def test_stored_types_and_transposed_views_quantise_like_their_float32() -> None:
    values = np.random.default_rng(3).normal(size=(12, 20)).astype(np.float32)
    patterns = (values.view(np.uint32) >> 16).astype(np.uint16)
    dense = DenseTensor(np.ascontiguousarray(patterns.T).T, "bfloat16")
    np.testing.assert_array_equal(quantize_dense(dense).values, quantize_rows(dense.to_float32()).values)
