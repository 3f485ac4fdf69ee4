"""PaddleSlim's observers, searches and error measure through the adapter, on NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from paddle_ds.checkpoints.rounding import quantize_rows
from paddle_ds.errors import CalibrationError, QuantizationError, UnsupportedError
from paddle_ds_slim.paddleslim_adapter import (
    channel_scales,
    layer_wise_error,
    observer_scale,
    observers,
    search_smooth_scale,
    searches,
    table,
)


def activations() -> list[np.ndarray]:
    """Batches of several lengths and widths of distribution, with a few outliers."""
    random = np.random.default_rng(2)
    batches = [random.normal(0, 1 + index, (20 + index, 16)).astype(np.float32) for index in range(3)]
    batches[0][0, 0] = -40
    return batches


@pytest.mark.parametrize("name", observers.ACTIVATION_OBSERVERS)
def test_a_scale_covers_some_of_the_values_whatever_their_order_and_sign(name: str) -> None:
    batches = activations()
    scale = observer_scale(name, batches)
    assert 0.02 < scale <= np.float32(40) / 127
    assert observer_scale(name, batches[::-1]) == pytest.approx(scale, rel=1e-6)
    if name != "hist":  # its 99.9 % counts from the least value
        assert observer_scale(name, [-batch for batch in batches]) == pytest.approx(scale, rel=1e-6)
    assert observer_scale(name, [2 * batch for batch in batches]) == pytest.approx(2 * scale, rel=1e-3)


def test_the_largest_magnitude_is_exact_and_outliers_are_cut_by_the_others() -> None:
    batches = activations()
    assert observer_scale("absmax", batches) == pytest.approx(40 / 127)
    assert observer_scale("absmax", batches, bits=4) == pytest.approx(40 / 7)
    assert all(observer_scale(name, batches) < 0.5 * 40 / 127 for name in ("avg", "kl", "hist"))
    assert all(observer_scale(name, batches, bits=4) < 0.7 * 40 / 7 for name in ("mse", "emd"))


def test_least_error_keeps_the_whole_range_where_cutting_costs_more() -> None:
    assert observer_scale("mse", activations()) == pytest.approx(40 / 127)


def test_the_mean_observer_averages_rows() -> None:
    rows = np.array([[1, -3], [2, 5]], np.float32)
    assert observer_scale("avg", [rows, rows]) == pytest.approx(4 / 127)


@pytest.mark.parametrize("name", observers.ACTIVATION_OBSERVERS)
def test_values_without_spread_have_a_scale(name: str) -> None:
    assert observer_scale(name, [np.zeros((3, 4), np.float32)]) == 1.0
    assert 0 < observer_scale(name, [np.full((3, 4), 2.0, np.float32)]) <= 2.001 / 127


def test_observers_refuse_what_they_cannot_use() -> None:
    with pytest.raises(UnsupportedError, match="observer 'max'; have: absmax, avg"):
        observer_scale("max", activations())
    with pytest.raises(CalibrationError, match="got no values"):
        observer_scale("mse", [np.empty((0, 4), np.float32)])
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        observer_scale("mse", [np.array([1, np.nan], np.float32)])
    with pytest.raises(UnsupportedError, match="weight observer 'kl'"):
        channel_scales(np.ones((2, 2), np.float32), "kl")  # type: ignore[arg-type]


def test_channel_scales_are_those_of_rounding_to_nearest() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float32)
    weight[2] = 0
    assert np.array_equal(channel_scales(weight), quantize_rows(weight).scales)


@pytest.mark.parametrize("tails", [2, 30])
def test_mse_scales_never_round_with_more_error(tails: int) -> None:
    weight = np.random.default_rng(0).standard_t(tails, size=(6, 20000)).astype(np.float32)
    weight[0] = 1
    scales = channel_scales(weight, "mse")

    def error(scales: np.ndarray) -> float:
        steps = np.clip(np.rint(weight / scales[:, None]), -127, 127)
        return float(np.square(steps * scales[:, None] - weight).sum())

    assert (scales <= channel_scales(weight) * 1.001).all()
    assert error(scales) < error(channel_scales(weight))


# ---- searches and errors


@pytest.mark.parametrize(
    "options", [{"name": "piecewise"}, {"name": "piecewise", "pieces": 2}, {"name": "awq"}, {"name": "awq", "group_size": 8}]
)
def test_a_search_finds_scales_that_lessen_the_error(options: dict[str, Any]) -> None:
    random = np.random.default_rng(4)
    weight, x = random.normal(size=(12, 32)).astype(np.float32), random.normal(size=(50, 32)).astype(np.float32)
    x[:, 7] *= 60
    magnitude = np.abs(x).mean(axis=0) if options["name"] == "awq" else np.abs(x).max(axis=0)
    scale = search_smooth_scale(x=x, act_absmax=magnitude, weight=weight, **options)
    assert scale.shape == (32,)
    assert scale.dtype == np.float32

    def error(scale: np.ndarray) -> float:
        small, large = x / scale, weight * scale
        if options["name"] == "awq":
            rounded = table.nearest_groups(large, options.get("group_size", 32))
        else:
            small = np.rint(small / np.abs(small).max() * 127) * np.abs(small).max() / 127
            rounded = table.nearest_rows(large)
        return float(np.square(small @ rounded.T - x @ weight.T).sum())

    assert error(scale) < 0.9 * error(np.ones(32, np.float32))


def test_searches_refuse_what_they_cannot_do() -> None:
    x, weight = np.ones((4, 6), np.float32), np.ones((2, 6), np.float32)
    with pytest.raises(UnsupportedError, match="have: piecewise without groups, awq with one piece"):
        search_smooth_scale("piecewise", x, x[0], weight, group_size=2)
    with pytest.raises(UnsupportedError, match="search 'grid'"):
        search_smooth_scale("grid", x, x[0], weight)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="6 inputs cannot be cut into groups of 4"):
        search_smooth_scale("awq", x, x[0], weight, group_size=4)
    with pytest.raises(CalibrationError, match="no tokens"):
        search_smooth_scale("awq", x[:0], x[0], weight)
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        search_smooth_scale("awq", x * np.float32(np.nan), x[0], weight)
    with pytest.raises(QuantizationError, match="PaddleSlim's search 'piecewise' failed: 'float' object"):
        search_smooth_scale("piecewise", x, x[0], weight * np.float32(np.inf))


def test_a_scale_that_cannot_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Search:
        def search(self, layer: str, sampled: Any, act_abs_max: Any, weight: Any) -> Any:
            return paddle.zeros_like(act_abs_max)

    monkeypatch.setattr(searches, "make_search", lambda *arguments: Search())
    x = np.ones((4, 6), np.float32)
    with pytest.raises(QuantizationError, match="found scales that are not above 0"):
        search_smooth_scale("awq", x, x[0], x)


def test_the_error_of_a_layer_is_that_of_both_roundings() -> None:
    random = np.random.default_rng(0)
    x, weight = random.normal(size=(9, 8)).astype(np.float32), random.normal(size=(5, 8)).astype(np.float32)
    linear = paddle.nn.Linear(8, 5)
    linear.weight.set_value(np.ascontiguousarray(weight.T))
    step = np.abs(x).max() / 127
    difference = np.rint(x / step) * step @ table.nearest_rows(weight).T - x @ weight.T
    assert layer_wise_error(linear, x) == pytest.approx(np.square(difference).mean(), rel=1e-3)
    assert layer_wise_error(linear, x, weight_bits=4) > 20 * layer_wise_error(linear, x)
