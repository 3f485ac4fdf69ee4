"""Every compiled operator against its oracle, over empty, single, odd and huge sizes. ``test_every_isa.py`` repeats it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from kernels.grid import Array, Heads, Ragged, Weights, assert_close, attention_oracle, normal
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.kernels import int8_linear, native
from paddle_ds.kernels.registry import Kernels, choose

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

#: rows, inputs, outputs: what a model of 1.5 billion parameters has, and worse
HUGE = [(4096, 192, 64), (4096, 67, 61), (5, 320, 17920), (2, 8960, 1536), (131, 8960, 192), (3, 17920, 129), (1, 17920, 64)]
#: around what vectors, packed columns and groups of rows hold
ODD = [(rows, num_in, num_out) for rows in (0, 1, 5, 129) for num_in in (1, 17, 65) for num_out in (1, 64, 65)]


@pytest.fixture(scope="module")
def ours() -> Kernels:
    return choose(CpuDevice(), only="native", strict=True)


@pytest.fixture(scope="module")
def oracle() -> Kernels:
    return choose(CpuDevice(), only="reference")


def quantised(x: Array) -> tuple[Array, Array]:
    """What the compiled operators make of activations: whole numbers, and scales [rows, 1]."""
    integers, scales = native.library().run("pds_quantize_rows", paddle.to_tensor(x))
    return integers.numpy().astype(np.float64) - 128, scales.numpy().astype(np.float64)


@pytest.mark.parametrize(("rows", "num_in", "num_out"), HUGE + ODD)
def test_int8_linear(ours: Kernels, rows: int, num_in: int, num_out: int) -> None:
    x, weights = normal(rows, num_in), Weights.random(num_out, num_in, bias=num_in % 2 == 0)
    integers, scales = quantised(x)  # the rounding has a test of its own
    expected = integers @ weights.values.T.astype(np.float64) * scales * weights.scales  # doubles hold these sums exactly
    y = weights.make(ours.int8_linear)(paddle.to_tensor(x))
    assert_close(y, expected + (0 if weights.bias is None else weights.bias), 2e-6)


@pytest.mark.parametrize(("rows", "num_in", "num_out"), HUGE + ODD)
def test_weight_only_linear(ours: Kernels, oracle: Kernels, rows: int, num_in: int, num_out: int) -> None:
    x, weights = paddle.to_tensor(normal(rows, num_in)), Weights.random(num_out, num_in, bias=num_in % 2 == 0)
    expected = weights.make(oracle.weight_only_linear)(x) if rows else paddle.zeros([0, num_out])
    assert_close(weights.make(ours.weight_only_linear)(x), expected, 1e-5)


@pytest.mark.parametrize(("rows", "num_in", "num_out"), [HUGE[1], *HUGE[4:6], *ODD[::5]])
def test_dense_linear(ours: Kernels, rows: int, num_in: int, num_out: int) -> None:
    x, weight, bias = normal(rows, num_in, seed=1), normal(num_out, num_in), normal(num_out)
    layer = ours.dense_linear(paddle.to_tensor(weight), paddle.to_tensor(bias))
    assert_close(layer(paddle.to_tensor(x)), x.astype(np.float64) @ weight.T + bias, 1e-5)


@pytest.mark.parametrize(("rows", "width"), [(0, 7), (1, 1), (1, 17920), (3, 8960), (33, 15), (4096, 67)])
def test_rms_norm(ours: Kernels, oracle: Kernels, rows: int, width: int) -> None:
    x, weight = paddle.to_tensor(normal(rows, width)), paddle.to_tensor(normal(width, seed=1))
    assert_close(ours.rms_norm(x, weight, 1e-6), oracle.rms_norm(x, weight, 1e-6), 1e-5)


@pytest.mark.parametrize(("rows", "width"), [(0, 7), (1, 1), (1, 17920), (3, 8960), (33, 15), (4096, 67)])
def test_silu_mul(ours: Kernels, oracle: Kernels, rows: int, width: int) -> None:
    gate_up = paddle.to_tensor(10 * normal(rows, 2 * width))
    assert_close(ours.silu_mul(gate_up), oracle.silu_mul(gate_up), 2e-6)


@pytest.mark.parametrize(("tokens", "heads", "dim"), [(0, 2, 8), (1, 1, 2), (3, 5, 34), (4096, 3, 22), (129, 12, 128)])
def test_rotary(ours: Kernels, oracle: Kernels, tokens: int, heads: int, dim: int) -> None:
    angles = 100 * normal(tokens, dim // 2, seed=1)
    arguments = [paddle.to_tensor(each) for each in (normal(tokens, heads, dim), np.cos(angles), np.sin(angles))]
    assert_close(ours.rotary(*arguments), oracle.rotary(*arguments), 2e-6)


@pytest.mark.parametrize(("rows", "width"), [(0, 7), (1, 1), (1, 17920), (3, 8960), (33, 15), (4096, 67)])
def test_activations_become_the_oracles_integers(rows: int, width: int) -> None:
    x = normal(rows, width) * np.logspace(-25, 25, max(rows, 1), dtype=np.float32)[:rows, None]
    integers, scales = quantised(x)
    assert (integers.shape, scales.shape) == ((rows, width), (rows, 1))
    if not rows:
        return
    expected, expected_scales = (each.numpy() for each in int8_linear.quantize_activations(paddle.to_tensor(x)))
    assert np.array_equal(scales, expected_scales)
    # a value that lies half-way once it is rounded to float32 may go either way: with fused multiply-add it was not rounded
    halfway = np.abs(np.abs(x / expected_scales % 1) - 0.5) < 1e-4
    assert np.array_equal(integers[~halfway], expected[~halfway])
    assert np.abs(integers - expected).max() <= 1


@pytest.mark.parametrize(
    ("requests", "heads"),
    [
        ([], Heads(4, 2, 8)),
        ([(1, 1)], Heads(1, 1, 2)),
        ([(1, 1), (17, 3), (16, 16), (31, 1)], Heads(7, 1, 22)),
        ([(4096, 1), (4097, 1), (5003, 2), (1, 1)], Heads(6, 2, 64)),
        ([(4500, 33), (20, 20)], Heads(12, 2, 128)),
        ([(4096, 4096)], Heads(3, 1, 10)),
        ([(3 + 7 * index, 1 + index % 2) for index in range(256)], Heads(2, 2, 18)),
    ],
    ids=["nothing", "one token", "odd", "4096 and more, decoded", "4500, in pieces", "4096 new", "256 requests"],
)
def test_attention_over_what_was_written(ours: Kernels, requests: list[tuple[int, int]], heads: Heads) -> None:
    batch, attention = Ragged(requests), ours.paged_attention
    keys = [normal(context, heads.kv, heads.dim, seed=2 * row) for row, (context, _) in enumerate(requests)]
    values = [normal(context, heads.kv, heads.dim, seed=2 * row + 1) for row, (context, _) in enumerate(requests)]
    queries = [normal(new, heads.query, heads.dim, seed=row) for row, (_, new) in enumerate(requests)]
    cache = attention.make_cache(2, batch.num_blocks, 16, heads.kv, heads.dim)
    for row in range(len(requests)):
        written = [paddle.to_tensor(each) for each in (keys[row], values[row], batch.slots(row))]
        attention.kv_write(cache, 1, *written)
    none = np.zeros((0, heads.query, heads.dim), np.float32)
    out = attention.attend(paddle.to_tensor(np.concatenate([none, *queries])), cache, 1, batch.layout(heads.dim // 2)).numpy()
    assert out.shape == (batch.num_new, heads.query * heads.dim)
    stops = np.cumsum([new for _, new in requests])
    for row, stop in enumerate(stops):
        expected = attention_oracle(queries[row], keys[row], values[row], heads, last_rows=64)
        assert_close(out[stop - len(expected) : stop], expected, 2e-5)


def test_nothing_to_write_writes_nothing(ours: Kernels) -> None:
    attention = ours.paged_attention
    cache = attention.make_cache(1, 2, 16, 2, 8)
    one = paddle.to_tensor(normal(1, 2, 8))
    attention.kv_write(cache, 0, one, one, paddle.to_tensor([20]))
    nothing = paddle.zeros([0, 2, 8])
    attention.kv_write(cache, 0, nothing, nothing, paddle.zeros([0], dtype="int64"))
    batch = Ragged([(1, 1)])
    batch.tables[0, 0] = 1
    attention.kv_write(cache, 0, one, one, paddle.to_tensor([16]))
    out = attention.attend(paddle.to_tensor(normal(1, 2, 8, seed=3)), cache, 0, batch.layout(4))
    assert_close(out, one.reshape([1, 16]), 1e-6)
