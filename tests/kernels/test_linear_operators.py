"""Linear layers against NumPy: integers exactly, floating point in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from paddle_ds.kernels.int8_linear import ZERO_BELOW, quantize_activations
from paddle_ds.kernels.registry import Kernels

Array = npt.NDArray[Any]
SHAPES = [(1, 1, 1), (3, 7, 5), (33, 64, 48), (2, 1024, 17), (5, 1025, 3), (2, 2049, 1), (1, 8960, 96), (130, 96, 200)]


def make_weights(num_out: int, num_in: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Weight, scales, bias."""
    random = np.random.default_rng([seed, num_out, num_in])
    weight = random.integers(-127, 128, (num_out, num_in)).astype(np.int8)
    return weight, random.uniform(1e-4, 1e-2, num_out).astype(np.float32), random.standard_normal(num_out).astype(np.float32)


def make_input(rows: int, num_in: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, rows, num_in]).standard_normal((rows, num_in)).astype(np.float32)


def run(make: Any, x: Array, *weights: Array | None) -> Array:
    return make(*weights)(paddle.to_tensor(x)).numpy()


def w8a8(x: Array, weight: Array, scale: Array, bias: Array | None) -> Array:
    """The formula of ``int8_linear``, with 64-bit sums."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    integers = np.clip(np.rint(x * (np.float32(127) / largest)), -127, 127).astype(np.int64)
    exact = integers @ weight.astype(np.int64).T
    return exact * (largest / np.float32(127)).astype(np.float64) * scale + (0 if bias is None else bias)


@pytest.mark.parametrize(("rows", "num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_int8_linear(kernels: Kernels, rows: int, num_in: int, num_out: int, with_bias: bool) -> None:
    x, (weight, scale, bias) = make_input(rows, num_in), make_weights(num_out, num_in)
    given = bias if with_bias else None
    np.testing.assert_allclose(
        run(kernels.int8_linear, x, weight, scale, given), w8a8(x, weight, scale, given), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("num_in", [1, 1023, 1024, 1025, 2048, 8960])
@pytest.mark.parametrize("extreme", [False, True], ids=["random", "largest"])
def test_int8_sums_are_exact(kernels: Kernels, num_in: int, extreme: bool) -> None:
    # whole numbers up to 127 pass quantisation unchanged, scales of 1 leave the sum itself
    random = np.random.default_rng(num_in)
    integers = np.full((3, num_in), 127) if extreme else random.integers(-127, 128, (3, num_in))
    integers[:, 0] = 127
    weight = np.full((5, num_in), -127) if extreme else random.integers(-127, 128, (5, num_in))
    y = run(kernels.int8_linear, integers.astype(np.float32), weight.astype(np.int8), np.ones(5, np.float32), None)
    assert y.tolist() == (integers @ weight.T).astype(np.float32).tolist()


def test_int8_weights_of_other_makers_may_be_minus_128(kernels: Kernels) -> None:
    weight = np.full((3, 2048), -128, np.int8)
    y = run(kernels.int8_linear, np.full((1, 2048), 127, np.float32), weight, np.ones(3, np.float32), None)
    assert y.tolist() == [[-128.0 * 127 * 2048] * 3]


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, ZERO_BELOW / 2])
def test_a_row_of_nothing_gives_the_bias(kernels: Kernels, value: float) -> None:
    weight, scale, bias = make_weights(5, 40)
    x = np.concatenate([np.full((1, 40), value, np.float32), make_input(1, 40)])
    y = run(kernels.int8_linear, x, weight, scale, bias)
    np.testing.assert_allclose(y[0], bias, atol=1e-20)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("value", [1e-29, 1e30])
def test_tiny_and_huge_rows_keep_their_precision(kernels: Kernels, value: float) -> None:
    weight, scale, _ = make_weights(5, 40)
    x = make_input(2, 40) * np.float32(value)
    np.testing.assert_allclose(run(kernels.int8_linear, x, weight, scale, None), w8a8(x, weight, scale, None), rtol=1e-5)


@pytest.mark.parametrize("num_in", [8, 2048])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_row_stays_broken_and_alone(kernels: Kernels, num_in: int, broken: float) -> None:
    weight, scale, bias = make_weights(4, num_in)
    x = make_input(3, num_in)
    x[1, num_in // 2] = broken
    y = run(kernels.int8_linear, x, weight, scale, bias)
    assert not np.isfinite(y[1]).any()
    np.testing.assert_allclose(y[[0, 2]], w8a8(x[[0, 2]], weight, scale, bias), rtol=1e-5, atol=1e-6)


def test_int8_rows_do_not_depend_on_their_neighbours(kernels: Kernels) -> None:
    layer = kernels.int8_linear(*make_weights(96, 2000))
    x = paddle.to_tensor(make_input(150, 2000))
    together = layer(x).numpy()
    for start, stop in ((0, 1), (7, 9), (100, 150)):
        assert (layer(x[start:stop]).numpy() == together[start:stop]).all()


def test_quantisation_rounds_half_to_even() -> None:
    integers, scale = quantize_activations(paddle.to_tensor([[127.0, 0.5, 1.5, -2.5, -126.5]]))
    assert (integers.tolist(), scale.tolist()) == ([[127, 0, 2, -2, -126]], [[1.0]])


@pytest.mark.parametrize(("rows", "num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_weight_only_linear(kernels: Kernels, rows: int, num_in: int, num_out: int, with_bias: bool) -> None:
    x, (weight, scale, bias) = make_input(rows, num_in), make_weights(num_out, num_in)
    given = bias if with_bias else None
    expected = x.astype(np.float64) @ weight.T * scale + (bias if with_bias else 0)
    y = run(kernels.weight_only_linear, x, weight, scale, given)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_dense_linear(kernels: Kernels, rows: int, num_in: int, num_out: int, with_bias: bool) -> None:
    x, weight, bias = make_input(rows, num_in), make_input(num_out, num_in, seed=1), make_weights(num_out, 1)[2]
    layer = kernels.dense_linear(paddle.to_tensor(weight), paddle.to_tensor(bias) if with_bias else None)
    expected = x.astype(np.float64) @ weight.T + (bias if with_bias else 0)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_out", [3, 20_000])
def test_a_weight_converted_in_pieces_is_put_together(kernels: Kernels, num_out: int) -> None:
    # 20 000 x 1 025 is more than the references convert at a time
    x, (weight, scale, bias) = make_input(1, 1025), make_weights(num_out, 1025)
    np.testing.assert_allclose(
        run(kernels.int8_linear, x, weight, scale, bias), w8a8(x, weight, scale, bias), rtol=1e-5, atol=1e-5
    )
    expected = x.astype(np.float64) @ weight.T * scale + bias
    np.testing.assert_allclose(run(kernels.weight_only_linear, x, weight, scale, bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["int8_linear", "weight_only_linear"])
def test_an_empty_batch_has_no_rows(kernels: Kernels, kind: str) -> None:
    assert run(getattr(kernels, kind), np.zeros((0, 40), np.float32), *make_weights(6, 40)).shape == (0, 6)


@pytest.mark.parametrize("kind", ["int8_linear", "weight_only_linear"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_layers_say_what_they_keep(kernels: Kernels, kind: str, with_bias: bool) -> None:
    weight, scale, bias = make_weights(64, 128)
    kept = getattr(kernels, kind)(weight, scale, bias if with_bias else None).weight_bytes()
    assert kept["int8"] >= 64 * 128
    assert kept["float32"] >= 4 * 64 * (1 + with_bias)
