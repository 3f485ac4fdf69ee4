"""The compiled operators against their plain-Paddle oracles, over grids with 1, odd, empty and large sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from paddle_ds.kernels import (
    candidates,
    dense_linear,
    int8_linear,
    native,
    paged_attention,
    rms_norm,
    rotary,
    silu_mul,
    weight_only_linear,
)
from paddle_ds.kernels.layout import BatchLayout

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

Array = npt.NDArray[np.float32]
#: rounding of another order of additions
TOLERANCE = 2e-6


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(ours: paddle.Tensor, oracle: paddle.Tensor, tolerance: float = TOLERANCE) -> bool:
    difference = np.abs(ours.numpy() - oracle.numpy())
    return ours.shape == oracle.shape and bool(
        (difference <= tolerance * max(1.0, float(np.abs(oracle.numpy()).max(initial=0)))).all()
    )


@pytest.mark.parametrize("rows", [0, 1, 3, 130])
@pytest.mark.parametrize("columns", [1, 7, 64, 1536])
def test_rms_norm(rows: int, columns: int) -> None:
    x, weight = paddle.to_tensor(normal(rows, columns)), paddle.to_tensor(normal(columns, seed=1))
    oracle = rms_norm.reference(x, weight, 1e-6) if rows else x
    assert close(native.rms_norm(x, weight, 1e-6), oracle, 1e-5)


@pytest.mark.parametrize("rows", [0, 1, 3, 130])
@pytest.mark.parametrize("columns", [1, 7, 172, 8960])
def test_silu_mul(rows: int, columns: int) -> None:
    gate_up = paddle.to_tensor(10 * normal(rows, 2 * columns))
    oracle = silu_mul.reference(gate_up) if rows else paddle.zeros([0, columns])
    assert close(native.silu_mul(gate_up), oracle)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dim", [2, 6, 64, 128])
def test_rotary(rows: int, heads: int, dim: int) -> None:
    x = paddle.to_tensor(normal(rows, heads, dim))
    angles = normal(rows, dim // 2, seed=2)
    cos, sin = paddle.to_tensor(np.cos(angles)), paddle.to_tensor(np.sin(angles))
    assert close(native.rotary(x, cos, sin), rotary.reference(x, cos, sin))


@pytest.mark.parametrize("columns", [1, 5, 64, 8960])
def test_activations_are_quantised_to_the_oracles_integers(columns: int) -> None:
    x = normal(9, columns) * np.logspace(-20, 6, 9, dtype=np.float32)[:, None]
    x[0] = 0
    x[1] = 1e-38  # 127 divided by it is infinite
    quantized, scale = native.library().run("pds_quantize_rows", paddle.to_tensor(x))
    oracle, oracle_scale = int8_linear.quantize_activations(paddle.to_tensor(x))
    assert np.array_equal(quantized.numpy().astype(np.int32) - 128, oracle.numpy().astype(np.int32))
    assert np.array_equal(scale.numpy(), oracle_scale.numpy())


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 17, 129, 300])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (3, 5), (64, 172), (130, 1025), (257, 2048)])
def test_int8_linear(num_out: int, num_in: int, rows: int, bias: bool) -> None:
    random = np.random.default_rng(num_out + num_in)
    weight = random.integers(-127, 128, (num_out, num_in)).astype(np.int8)
    scale = random.random(num_out).astype(np.float32) / 100
    offset = normal(num_out) if bias else None
    layer = native.NativeInt8Linear(weight, scale, offset)
    x = paddle.to_tensor(normal(rows, num_in))
    reference = int8_linear.ReferenceInt8Linear(weight, scale, offset)
    assert close(layer(x), reference(x) if rows else paddle.zeros([0, num_out]))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 9, 130])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (3, 5), (64, 172), (130, 1025), (33, 8960)])
def test_weight_only_linear(num_out: int, num_in: int, rows: int, bias: bool) -> None:
    random = np.random.default_rng(num_out + num_in)
    weight = random.integers(-127, 128, (num_out, num_in)).astype(np.int8)
    scale = random.random(num_out).astype(np.float32) / 100
    offset = normal(num_out) if bias else None
    x = paddle.to_tensor(normal(rows, num_in))
    ours = native.NativeWeightOnlyLinear(weight, scale, offset)
    reference = weight_only_linear.ReferenceWeightOnlyLinear(weight, scale, offset)
    assert close(ours(x), reference(x) if rows else paddle.zeros([0, num_out]), 1e-5)
    alone = [ours(x[row : row + 1]).numpy() for row in range(min(rows, 3))]
    assert all(np.array_equal(row, ours(x).numpy()[index : index + 1]) for index, row in enumerate(alone))


@pytest.mark.parametrize("threads", ["1", "2", "4"])
def test_few_outputs_and_many_inputs_on_several_threads(threads: str) -> None:
    # oneDNN divides the inputs among threads here; with a group of columns that is not full it crashed
    code = (
        "import numpy as np, paddle\n"
        "from paddle_ds.kernels import native\n"
        "for n in (1, 3, 64, 65, 128, 192):\n"
        "    for k in (3, 2047, 2048, 4100, 8960):\n"
        "        w = np.random.default_rng(k).integers(-127, 128, (n, k)).astype(np.int8)\n"
        "        layer = native.NativeInt8Linear(w, np.ones(n, np.float32), None)\n"
        "        for m in (1, 2, 3, 7):\n"
        "            y = layer(paddle.full([m, k], 127.0)).numpy()\n"
        "            assert (y == (127 * w.astype(np.int64).sum(1)).astype(np.float32)).all(), (n, k, m)\n"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]


@pytest.mark.parametrize("sign", [-1, 1])
def test_int8_products_do_not_saturate(sign: int) -> None:
    weight = np.full((16, 4096), 127 * sign, np.int8)
    layer = native.NativeInt8Linear(weight, np.ones(16, np.float32), None)
    y = layer(paddle.ones([3, 4096]))
    assert np.array_equal(y.numpy(), np.full((3, 16), 127.0 * sign * 127 * 4096, np.float32) * np.float32(1 / 127))


def test_int8_linear_at_full_size() -> None:
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (17920, 1536)).astype(np.int8)
    scale = random.random(17920).astype(np.float32)
    x = paddle.to_tensor(normal(2, 1536))
    assert close(native.NativeInt8Linear(weight, scale, None)(x), int8_linear.ReferenceInt8Linear(weight, scale, None)(x))


def test_nan_in_a_row_reaches_its_result_and_no_other() -> None:
    layer = native.NativeInt8Linear(np.ones((4, 40), np.int8), np.ones(4, np.float32), None)
    x = normal(3, 40)
    x[1, 17] = np.nan
    y = layer(paddle.to_tensor(x)).numpy()
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


class Ragged:
    """Requests of given (context before, new tokens), written to a cache of shuffled blocks in both layouts."""

    def __init__(self, lengths: list[tuple[int, int]], heads: int, kv_heads: int, dim: int) -> None:
        self.lengths, self.heads, self.kv_heads, self.dim = lengths, heads, kv_heads, dim
        random = np.random.default_rng(len(lengths))
        counts = [-(-(before + new) // 16) for before, new in lengths]
        blocks = random.permutation(sum(counts) + 3)
        self.num_blocks = len(blocks)
        self.tables = np.zeros((len(lengths), max(counts)), np.int32)
        for row, count in enumerate(counts):
            self.tables[row, :count], blocks = blocks[:count], blocks[count:]
        self.keys = [normal(before + new, kv_heads, dim, seed=7 + i) for i, (before, new) in enumerate(lengths)]
        self.values = [normal(before + new, kv_heads, dim, seed=70 + i) for i, (before, new) in enumerate(lengths)]
        self.queries = [normal(new, heads, dim, seed=700 + i) for i, (_, new) in enumerate(lengths)]

    def attend(self, module: Any, members: list[int], dtype: str = "float32") -> Array:
        """Attention of some of the requests in one batch, float32 [T, heads * dim]."""
        cache = module.make_cache(2, self.num_blocks, 16, self.kv_heads, self.dim, dtype)
        for member in range(len(self.lengths)):
            positions = np.arange(sum(self.lengths[member]))
            slots = self.tables[member][positions // 16].astype(np.int64) * 16 + positions % 16
            key, value = paddle.to_tensor(self.keys[member]), paddle.to_tensor(self.values[member])
            module.kv_write(cache, 1, key, value, paddle.to_tensor(slots))
        new = [self.lengths[member][1] for member in members]
        layout = BatchLayout(
            query_starts=np.concatenate([[0], np.cumsum(new)]).astype(np.int32),
            context_lens=np.array([sum(self.lengths[member]) for member in members], np.int32),
            block_tables=self.tables[members],
            block_tokens=16,
            slots=paddle.zeros([sum(new)], dtype="int64"),
            cos=paddle.zeros([1]),
            sin=paddle.zeros([1]),
        )
        query = paddle.to_tensor(np.concatenate([self.queries[member] for member in members]))
        attend: Callable[..., paddle.Tensor] = getattr(module, "attend", None) or module.paged_attention
        result: Array = attend(query, cache, 1, layout).numpy()
        return result


LENGTHS = [
    [(0, 1)],
    [(16, 1), (15, 1), (100, 1)],
    [(0, 33), (5, 1), (40, 17), (0, 2)],
    [(300, 40), (0, 129)],
]


KV_DTYPES = ["float32", "bfloat16", "int8"]


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 2), (6, 2, 32), (8, 4, 8), (12, 2, 128), (3, 3, 80), (100, 1, 6)])
def test_paged_attention(lengths: list[tuple[int, int]], heads: int, kv_heads: int, dim: int, dtype: str) -> None:
    batch = Ragged(lengths, heads, kv_heads, dim)
    members = list(range(len(lengths)))
    assert np.abs(batch.attend(native, members, dtype) - batch.attend(paged_attention, members, dtype)).max() <= 1e-5


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_attention_of_a_request_does_not_depend_on_its_neighbours(dtype: str) -> None:
    batch = Ragged(LENGTHS[2], 12, 2, 128)
    together = batch.attend(native, [0, 1, 2, 3], dtype)
    starts = np.concatenate([[0], np.cumsum([new for _, new in LENGTHS[2]])])
    for member in range(4):
        assert np.array_equal(batch.attend(native, [member], dtype), together[starts[member] : starts[member + 1]])


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2.0**-7), ("int8", 2 / 127)])
def test_a_smaller_cache_rounds_and_no_more(dtype: str, bound: float) -> None:
    batch = Ragged([(70, 20)], 6, 2, 64)
    exact, rounded = batch.attend(native, [0]), batch.attend(native, [0], dtype)
    assert 0 < np.abs(exact - rounded).max() <= bound * max(np.abs(values).max() for values in batch.values)


def test_a_long_context_and_a_long_prompt() -> None:
    batch = Ragged([(4095, 2), (3, 600)], 4, 2, 64)
    assert np.abs(batch.attend(native, [0, 1]) - batch.attend(paged_attention, [0, 1])).max() <= 1e-5


def test_scores_of_any_size_are_weighed() -> None:
    batch = Ragged([(0, 90)], 2, 2, 16)
    batch.queries = [300 * query for query in batch.queries]  # all weight on one token, exp far below what a float holds
    assert np.abs(batch.attend(native, [0]) - batch.attend(paged_attention, [0])).max() <= 2e-4


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("rows", [0, 1, 3, 5, 130])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (3, 5), (64, 172), (130, 1025), (33, 8960)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_linear(dtype: str, num_out: int, num_in: int, rows: int, bias: bool) -> None:
    weight = paddle.to_tensor(normal(num_out, num_in)).astype(dtype)
    offset = paddle.to_tensor(normal(num_out, seed=3)) if bias else None
    ours = native.NativeDenseLinear(weight, offset)
    reference = dense_linear.ReferenceDenseLinear(weight, offset)
    x = paddle.to_tensor(normal(rows, num_in, seed=5))
    assert close(ours(x), reference(x) if rows else paddle.zeros([0, num_out]), 1e-5)
    assert ours.weight_bytes() == reference.weight_bytes()
    alone = [ours(x[row : row + 1]).numpy() for row in range(min(rows, 3))]
    assert all(np.array_equal(row, ours(x).numpy()[index : index + 1]) for index, row in enumerate(alone))


@pytest.mark.parametrize("count", [1, 2, 50, 1024])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 151936])
def test_candidates(size: int, count: int) -> None:
    logits = np.round(3 * normal(5, size + 2, seed=size), 2 if size < 1000 else 4)  # equal ones among them
    logits[:, size:] = 1e6  # padding of the vocabulary
    logits[3] = np.sort(logits[3])
    logits[4, :size] = 1.5
    temperatures = np.array([0, 0.6, 1, 2, 0.1], np.float32)
    count = min(count, size)
    ours = native.candidates(paddle.to_tensor(logits), size, temperatures, count)
    oracle = candidates.reference(paddle.to_tensor(logits), size, temperatures, count)
    assert np.array_equal(ours.ids, oracle.ids)
    assert np.array_equal(ours.values, oracle.values)
    np.testing.assert_allclose(ours.totals, oracle.totals, rtol=2e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_comes_first(broken: float, temperature: float) -> None:
    logits = normal(2, 300)
    logits[1, 177] = broken
    found = native.candidates(paddle.to_tensor(logits), 300, np.full(2, temperature, np.float32), 4)
    assert found.ids[1, 0] == 177
    assert not np.isfinite(found.values[1, 0])
    assert np.isfinite(found.values[0, 0])


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45])
def test_hardly_any_temperature_leaves_the_best(temperature: float) -> None:
    found = native.candidates(paddle.to_tensor(np.array([[1, 3, 2]], np.float32)), 3, np.array([temperature], np.float32), 2)
    assert found.ids[0, 0] == 1
    assert found.totals[0] == 1


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set_agrees_with_the_oracles(isa: str) -> None:
    onednn = {"avx512": "ALL", "avx2": "AVX2", "baseline": "SSE41"}[isa]
    environ = {**os.environ, "PADDLE_DS_MAX_ISA": isa, "ONEDNN_MAX_CPU_ISA": onednn}
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", "not instruction_set and not full_size"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_the_cap_on_instruction_sets_is_obeyed(isa: str) -> None:
    code = "from paddle_ds.kernels import native; print(native.library().vector_isa)"
    environ = {**os.environ, "PADDLE_DS_MAX_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == isa
