"""The operators of exported programs against those of the engine, to the bit, under every instruction set that is here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import paddle
import pytest

from paddle_ds.export.packing import pack_int8
from paddle_ds.kernels import native
from paddle_ds.kernels.layout import BatchLayout

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

#: outputs and inputs of a layer: one, around whole groups of 64, beyond a piece of 2048 inputs
SIZES = [(1, 1), (3, 2), (63, 65), (64, 64), (130, 48), (192, 2112)]
ROWS = [1, 3, 7, 150]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("num_out", "num_in"), SIZES)
def test_int8_layers_agree_to_the_bit(num_out: int, num_in: int, has_bias: bool) -> None:
    values = np.random.default_rng([num_out, num_in]).integers(-127, 128, (num_out, num_in), dtype=np.int8)
    scales, bias = np.abs(normal(num_out)) + np.float32(1e-3), normal(num_out) if has_bias else None
    layer = native.NativeInt8Linear(values, scales, bias)
    packed = [paddle.to_tensor(array) for array in (*pack_int8(values, num_out), scales)]
    given = None if bias is None else paddle.to_tensor(bias)
    for rows in ROWS:
        x = paddle.to_tensor(normal(rows, num_in))
        ours = native.library().run("pds_export_int8_linear", x, *packed, given)[0]
        assert np.array_equal(ours.numpy(), layer(x).numpy())


def test_extreme_integers_do_not_saturate() -> None:
    values = np.full((64, 256), -128, np.int8)
    values[::2] = 127
    layer = native.NativeInt8Linear(values, np.ones(64, np.float32), None)
    packed = [paddle.to_tensor(array) for array in (*pack_int8(values, 64), np.ones(64, np.float32))]
    x = paddle.to_tensor(np.concatenate([np.ones((1, 256)), -np.ones((1, 256))]).astype(np.float32))
    ours = native.library().run("pds_export_int8_linear", x, *packed, None)[0].numpy()
    assert np.array_equal(ours, layer(x).numpy())
    assert np.abs(ours).max() == 256 * 128


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 6), (2, 2, 32), (7, 1, 24), (1, 1, 2)])
@pytest.mark.parametrize(("past", "new"), [(0, 1), (0, 70), (15, 1), (16, 1), (63, 2), (100, 30), (130, 1)])
def test_attention_over_rows_is_that_over_blocks(heads: int, kv_heads: int, dim: int, past: int, new: int) -> None:
    context, layers, layer = past + new, 3, 1
    keys, values, query = normal(context, kv_heads, dim), -normal(context, kv_heads, dim), normal(new, heads, dim)
    rows = np.full((2, layers, past + 5, kv_heads, dim), np.nan, np.float32)  # what nobody has written may hold anything
    rows[0, layer, :past], rows[1, layer, :past] = keys[:past], values[:past]
    arguments = [query, keys[past:], values[past:], *rows, np.array([past])]
    ours = native.library().run("pds_export_attention", *map(paddle.to_tensor, arguments), layer)[0]
    assert np.array_equal(ours.numpy(), in_blocks(query, keys, values))


def in_blocks(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> Any:
    """The engine's attention of the last tokens of one request."""
    new, context = len(query), len(keys)
    _, kv_heads, dim = keys.shape
    num_blocks = -(-context // native.BLOCK_TOKENS)
    angles = paddle.zeros([new, dim // 2])
    layout = BatchLayout(
        query_starts=np.array([0, new], np.int32),
        context_lens=np.array([context], np.int32),
        block_tables=np.arange(num_blocks, dtype=np.int32)[None, ::-1].copy(),
        block_tokens=native.BLOCK_TOKENS,
        slots=paddle.to_tensor(np.arange(context)),
        cos=angles,
        sin=angles,
    )
    blocks = layout.block_tables[0].astype(np.int64)[np.arange(context) // native.BLOCK_TOKENS]
    slots = paddle.to_tensor(blocks * native.BLOCK_TOKENS + np.arange(context) % native.BLOCK_TOKENS)
    cache = native.make_cache(1, num_blocks, native.BLOCK_TOKENS, kv_heads, dim)
    native.kv_write(cache, 0, paddle.to_tensor(keys), paddle.to_tensor(values), slots)
    return native.paged_attention(paddle.to_tensor(query), cache, 0, layout).numpy()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"past_length": 9}, "past_length is 9; past_keys has room for 8 tokens"),
        ({"past_length": -1}, "past_length is -1"),
        ({"rows": (2, 8, 3, 4)}, "past_keys has 3 heads of 4, the model others"),
        ({"rows": (1, 8, 2, 4)}, "past_keys has 1 layers"),
        ({"rows": (2, 8, 8)}, "past_keys and past_values are"),
    ],
    ids=["too long", "negative", "heads", "layers", "rank"],
)
def test_rows_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    given = {"past_length": 8, "rows": (2, 8, 2, 4), **changes}
    rows = [np.zeros(given["rows"], np.float32)] * 2
    arguments = [normal(1, 4, 4), normal(1, 2, 4), normal(1, 2, 4), *rows, np.array([given["past_length"]])]
    with pytest.raises(Exception, match=said):  # of Paddle's own type
        native.library().run("pds_export_attention", *map(paddle.to_tensor, arguments), 1)


@pytest.mark.skipif("PADDLE_DS_MAX_ISA" in os.environ, reason="one cap at a time")
def test_they_agree_under_every_cap() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    with contextlib.ExitStack() as stack:
        running = {}
        for isa in ("avx2", "baseline"):
            environ = {**os.environ, "PADDLE_DS_MAX_ISA": isa, "OMP_NUM_THREADS": "1"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            running[isa] = stack.enter_context(subprocess.Popen(command, env=environ, **pipes))
        for isa, process in running.items():
            printed, _ = process.communicate(timeout=200)
            assert process.returncode == 0, f"{isa}: {printed[-3000:]}"
