"""Integers and scales of every form against the plain formula, on odd shapes."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_ds.checkpoints import DenseTensor, GroupedWeight, Int8Weight
from paddle_ds.checkpoints.rounding import quantize_rows
from paddle_ds.kernels.int8_linear import quantize_activations
from paddle_ds_slim.rounding import Format, absmax_scales, fake_tokens, fitting_group_size, relative_error, rounded, to_integers


def weight(num_out: int, num_in: int) -> np.ndarray:
    return np.random.default_rng(num_out + num_in).normal(0, 1, (num_out, num_in)).astype(np.float32)


@pytest.mark.parametrize(("num_out", "num_in", "size"), [(1, 2, 2), (3, 12, 4), (65, 96, 32), (7, 86, 43), (5, 64, None)])
@pytest.mark.parametrize("scheme", ["w4a16", "w8a16"])
def test_each_weight_goes_to_the_nearest_step_of_its_group(num_out: int, num_in: int, size: int | None, scheme: str) -> None:
    values, form = weight(num_out, num_in), Format(scheme, size)  # type: ignore[arg-type]
    scales = absmax_scales(values, form)
    found = to_integers(values, scales, form)
    per_input = np.repeat(scales, num_in // scales.shape[1], axis=1)
    assert np.abs(found.to_float32() - values).max() <= (per_input / 2 * 1.0001).max()
    assert (np.abs(found.to_float32() - values) <= per_input * 0.5001).all()
    assert np.abs(found.values).max() == form.qmax
    assert isinstance(found, Int8Weight) == (scheme == "w8a16" and size is None)


def test_int8_per_channel_is_the_rounding_of_the_loader() -> None:
    values = weight(9, 33)
    found, loaded = rounded(values, Format("w8a8")), quantize_rows(values)
    assert isinstance(found, Int8Weight)
    assert (found.values == loaded.values).all()
    assert (found.scales == loaded.scales).all()


def test_dense_stays() -> None:
    values = weight(3, 4)
    found = rounded(values, Format("dense"))
    assert isinstance(found, DenseTensor)
    assert (found.values == values).all()


def test_a_group_of_zeros_has_scale_one() -> None:
    values = weight(2, 8)
    values[1, 4:] = 0
    found = rounded(values, Format("w4a16", 4))
    assert isinstance(found, GroupedWeight)
    assert found.scales[1, 1] == 1
    assert (found.values[1, 4:] == 0).all()


def test_activations_are_rounded_as_the_runtime_does() -> None:
    x = weight(17, 40)
    x[3] = 0
    integers, scales = quantize_activations(paddle.to_tensor(x))
    assert (fake_tokens(x) == (integers * scales).numpy()).all()


@pytest.mark.parametrize(
    ("num_in", "wanted", "found"),
    [(64, 64, None), (128, 64, 64), (172, 64, 43), (8960, 128, 128), (97, 64, None), (96, None, None)],
)
def test_a_group_size_that_does_not_fit_gives_way(num_in: int, wanted: int | None, found: int | None) -> None:
    assert fitting_group_size(num_in, wanted) == found


def test_relative_error() -> None:
    one = np.ones((2, 2), np.float32)
    assert relative_error(one, one) == 0
    assert relative_error(one, one * 1.5) == pytest.approx(0.5)
    assert relative_error(one * 0, one) == float("inf")


def test_nan_is_refused() -> None:
    values = weight(2, 4)
    values[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        rounded(values, Format("w4a16", 2))
