"""Normalisation, gate and rotary embedding against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from paddle_ds.kernels.registry import Kernels

Array = npt.NDArray[np.float32]
ROWS = [1, 2, 3, 33]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [1, 7, 64, 1537])
def test_rms_norm(kernels: Kernels, rows: int, width: int) -> None:
    x, weight = random(rows, width), random(width, seed=1)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-6) * weight
    y = kernels.rms_norm(paddle.to_tensor(x), paddle.to_tensor(weight), 1e-6)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_rms_norm_of_extremes(kernels: Kernels, scale: float) -> None:
    x = random(3, 50) * np.float32(scale)
    y = kernels.rms_norm(paddle.to_tensor(x), paddle.ones([50]), 1e-6).numpy()
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y, wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6), rtol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [1, 7, 64, 4481])
def test_silu_mul(kernels: Kernels, rows: int, width: int) -> None:
    gate, up = random(rows, width) * 4, random(rows, width, seed=1)
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    y = kernels.silu_mul(paddle.to_tensor(np.concatenate([gate, up], axis=1)))
    np.testing.assert_allclose(y.numpy(), expected, rtol=2e-5, atol=1e-6)


def test_silu_of_large_gates_neither_overflows_nor_vanishes(kernels: Kernels) -> None:
    gate_up = np.array([[-1e4, -200, -88, 88, 200, 1e4, 1, 1, 1, 1, 1, 1]], np.float32)
    y = kernels.silu_mul(paddle.to_tensor(gate_up)).numpy()
    np.testing.assert_allclose(y, [[0, 0, 0, 88, 200, 1e4]], atol=1e-30)


@pytest.mark.parametrize("tokens", ROWS)
@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (3, 6), (2, 64), (5, 128), (1, 34)])
def test_rotary(kernels: Kernels, tokens: int, heads: int, dim: int) -> None:
    x, angles = random(tokens, heads, dim), random(tokens, dim // 2, seed=1) * 3
    # the pair (i, i + D/2) is a complex number that is turned
    turned = (x[..., : dim // 2] + 1j * x[..., dim // 2 :].astype(np.complex128)) * np.exp(1j * angles)[:, None]
    y = kernels.rotary(paddle.to_tensor(x), paddle.to_tensor(np.cos(angles)), paddle.to_tensor(np.sin(angles)))
    np.testing.assert_allclose(y.numpy(), np.concatenate([turned.real, turned.imag], axis=-1), rtol=1e-5, atol=2e-6)


def test_rotary_leaves_its_input_alone(kernels: Kernels) -> None:
    x = paddle.ones([2, 1, 4])
    kernels.rotary(x, paddle.zeros([2, 2]), paddle.ones([2, 2]))
    assert (x.numpy() == 1).all()
