"""An INT8 cache with static scales, against the formula in NumPy. ``test_every_isa.py`` repeats it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import paddle
import pytest

from kernels.grid import BLOCK_TOKENS, Array, Heads, Ragged, assert_close, attention_oracle, normal
from paddle_ds.kernels import native
from paddle_ds.kernels.cache import KvCache, StaticScales
from paddle_ds.kernels.registry import Kernels

HEADS = [Heads(1, 1, 2), Heads(6, 2, 32), Heads(12, 2, 128), Heads(3, 3, 80), Heads(7, 1, 22)]
REQUESTS = [(1, 1), (17, 3), (16, 16), (100, 1), (40, 7)]
NUM_LAYERS, LAYER = 3, 1


def scales_of(kv_heads: int, num_layers: int = NUM_LAYERS) -> StaticScales:
    """Different ones for each layer and head, keys and values; standard normal numbers reach beyond the range of most."""
    random = np.random.default_rng([kv_heads, num_layers])
    key, value = random.uniform(0.005, 0.03, (2, num_layers, kv_heads)).astype(np.float32)
    return StaticScales(key, value)


def integers(x: Array, scale: Array) -> Array:
    """float32 [T, kv_heads, D] and [kv_heads] -> int8 [T, kv_heads, D]."""
    clipped: Array = np.clip(np.rint(x / scale[:, None]), -127, 127).astype(np.int8)
    return clipped


def make_cache(kernels: Kernels, heads: Heads, num_blocks: int, static: StaticScales | None, dtype: str = "int8") -> KvCache:
    cache: KvCache = kernels.paged_attention.make_cache(NUM_LAYERS, num_blocks, BLOCK_TOKENS, heads.kv, heads.dim, dtype, static)
    return cache


def write(kernels: Kernels, cache: KvCache, key: Array, value: Array, slots: Array, layer: int = LAYER) -> None:
    kernels.paged_attention.kv_write(cache, layer, *(paddle.to_tensor(each) for each in (key, value, slots)))


def stored(kernels: Kernels, cache: KvCache, slots: Array, dim: int) -> tuple[Array, Array, Array, Array]:
    """Keys and values int8 [T, kv_heads, D] and their scales float32 [T, kv_heads] as they lie in the cache."""
    parts = [np.asarray(part[LAYER]) for part in (cache.keys, cache.values, cache.key_scales, cache.value_scales)]
    if kernels.chosen["paged_attention"] == "reference":
        keys, values, key_scales, value_scales = (part[slots] for part in parts)
        return keys, values, key_scales[..., 0], value_scales[..., 0]
    block, offset = slots // BLOCK_TOKENS, slots % BLOCK_TOKENS
    keys, values, key_scales, value_scales = parts
    assert not values[block, :, offset, dim:].any()
    return keys[block, :, :, offset], values[block, :, offset, :dim], key_scales[block, :, offset], value_scales[block, :, offset]


@dataclasses.dataclass
class Written:
    """Requests whose keys and values lie in a cache."""

    batch: Ragged
    heads: Heads
    keys: list[Array]
    values: list[Array]
    queries: list[Array]
    cache: KvCache

    @classmethod
    def random(cls, kernels: Kernels, heads: Heads, static: StaticScales | None, dtype: str = "int8") -> Written:
        batch = Ragged(REQUESTS)
        keys = [normal(context, heads.kv, heads.dim, seed=2 * row) for row, (context, _) in enumerate(REQUESTS)]
        values = [normal(context, heads.kv, heads.dim, seed=2 * row + 1) for row, (context, _) in enumerate(REQUESTS)]
        queries = [normal(new, heads.query, heads.dim, seed=row) for row, (_, new) in enumerate(REQUESTS)]
        cache = make_cache(kernels, heads, batch.num_blocks, static, dtype)
        for row in range(len(REQUESTS)):
            write(kernels, cache, keys[row], values[row], batch.slots(row))
        return cls(batch, heads, keys, values, queries, cache)

    def attend(self, kernels: Kernels, rows: list[int]) -> list[Array]:
        """One array [new tokens, heads * dim] for each of ``rows``."""
        part = Ragged([REQUESTS[row] for row in rows], self.batch.tables[rows])
        query = paddle.to_tensor(np.concatenate([self.queries[row] for row in rows]))
        out = kernels.paged_attention.attend(query, self.cache, LAYER, part.layout(self.heads.dim // 2)).numpy()
        return np.split(out, np.cumsum([REQUESTS[row][1] for row in rows])[:-1])


def heads_id(heads: Heads) -> str:
    return f"{heads.query}-{heads.kv}-{heads.dim}"


@pytest.mark.parametrize("heads", HEADS, ids=heads_id)
def test_what_is_stored_is_the_formula_to_the_bit(kernels: Kernels, heads: Heads) -> None:
    static = scales_of(heads.kv)
    written = Written.random(kernels, heads, static)
    clipped = 0
    for row in range(len(REQUESTS)):
        keys, values, key_scales, value_scales = stored(kernels, written.cache, written.batch.slots(row), heads.dim)
        assert np.array_equal(keys, integers(written.keys[row], static.key[LAYER]))
        assert np.array_equal(values, integers(written.values[row], static.value[LAYER]))
        assert (key_scales == static.key[LAYER]).all()
        assert (value_scales == static.value[LAYER]).all()
        clipped += int((np.abs(written.keys[row]) > 127.5 * static.key[LAYER][:, None]).sum())
    assert clipped or heads.dim == 2


@pytest.mark.parametrize("heads", HEADS, ids=heads_id)
def test_attention_reads_back_integers_times_the_scale(kernels: Kernels, heads: Heads) -> None:
    static = scales_of(heads.kv)
    written = Written.random(kernels, heads, static)
    for row, out in enumerate(written.attend(kernels, list(range(len(REQUESTS))))):
        keys = integers(written.keys[row], static.key[LAYER]) * static.key[LAYER][:, None]
        values = integers(written.values[row], static.value[LAYER]) * static.value[LAYER][:, None]
        assert_close(out, attention_oracle(written.queries[row], keys, values, heads), 1e-5)


def test_values_beyond_the_range_are_clipped_and_halves_go_to_even(kernels: Kernels) -> None:
    x = np.array([[[1e30, -1e30, 63.6, -63.75, 63.5, -63.5, 0.25, -0.25, 0.75, -0.75, 1.25, 0.0]]], np.float32)
    expected = [127, -127, 127, -127, 127, -127, 0, 0, 2, -2, 2, 0]
    heads, half = Heads(1, 1, x.size), np.full((NUM_LAYERS, 1), 0.5, np.float32)
    cache = make_cache(kernels, heads, 2, StaticScales(half, half))
    write(kernels, cache, x, -x, np.array([19]))
    keys, values, *_ = stored(kernels, cache, np.array([19]), heads.dim)
    assert keys[0, 0].tolist() == expected
    assert values[0, 0].tolist() == [-each for each in expected]


@pytest.mark.parametrize("scale", [1e-38, 1e-3, 1e38], ids=str)
def test_scales_of_any_size_store_what_they_can_hold(kernels: Kernels, scale: float) -> None:
    heads, scales = Heads(1, 1, 4), np.full((NUM_LAYERS, 1), scale, np.float32)
    cache = make_cache(kernels, heads, 1, StaticScales(scales, scales))
    x = np.array([[[3.0, -3.0, 0.0, 1e-3]]], np.float32)
    write(kernels, cache, x, x, np.array([0]))
    keys, values, *_ = stored(kernels, cache, np.array([0]), 4)
    assert np.array_equal(keys, integers(x, scales[LAYER]))
    assert np.array_equal(values, keys)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("which", ["key", "value"])
def test_what_is_not_finite_is_not_clipped_away(kernels: Kernels, which: str, broken: float) -> None:
    heads = Heads(4, 2, 16)
    written = Written.random(kernels, heads, scales_of(heads.kv))
    parts = {"key": written.keys[3].copy(), "value": written.values[3].copy()}
    parts[which][50, 1, 7] = broken
    slots = written.batch.slots(3)
    write(kernels, written.cache, parts["key"], parts["value"], slots)
    _, _, key_scales, value_scales = stored(kernels, written.cache, slots, heads.dim)
    where = np.isnan(key_scales if which == "key" else value_scales)
    assert np.argwhere(where).tolist() == [[50, 1]]
    assert np.isfinite(value_scales if which == "key" else key_scales).all()
    if which == "value":
        out = written.attend(kernels, [1, 3])
        assert np.isfinite(out[0]).all()
        assert np.isfinite(out[1][0, :32]).all()  # the queries of the other head
        assert np.isnan(out[1][0, 32:]).all()


def test_layers_have_scales_of_their_own(kernels: Kernels) -> None:
    heads = Heads(2, 2, 16)
    static = scales_of(heads.kv)
    written = Written.random(kernels, heads, static)
    other = normal(40, 2, 16, seed=9)
    for layer in (0, 2):
        write(kernels, written.cache, other, other, written.batch.slots(4), layer)
    keys, *_ = stored(kernels, written.cache, written.batch.slots(4), heads.dim)
    assert np.array_equal(keys, integers(written.keys[4], static.key[LAYER]))
    assert not np.array_equal(keys, integers(written.keys[4], static.key[0]))


def test_without_static_scales_each_token_and_head_finds_its_own(kernels: Kernels) -> None:
    heads = Heads(6, 2, 32)
    written = Written.random(kernels, heads, None)
    _, _, key_scales, _ = stored(kernels, written.cache, written.batch.slots(3), heads.dim)
    assert np.array_equal(key_scales, np.abs(written.keys[3]).max(axis=-1) / np.float32(127))


def test_scales_that_fit_are_as_exact_as_eight_bits_are(kernels: Kernels) -> None:
    heads = Heads(6, 2, 64)
    exact = Written.random(kernels, heads, None, "float32")
    peaks = [np.max([np.abs(x).max(axis=(0, 2)) for x in part], axis=0) / np.float32(127) for part in (exact.keys, exact.values)]
    rounded = Written.random(kernels, heads, StaticScales(*(np.tile(peak, (NUM_LAYERS, 1)) for peak in peaks)))
    rows = list(range(len(REQUESTS)))
    difference = np.concatenate(exact.attend(kernels, rows)) - np.concatenate(rounded.attend(kernels, rows))
    assert 0 < np.abs(difference).max() <= 2 / 127 * max(np.abs(values).max() for values in exact.values)


def test_a_request_has_the_same_bits_in_every_company(kernels: Kernels) -> None:
    if kernels.chosen["paged_attention"] != "native":
        pytest.skip("only the compiled operators promise it")
    heads = Heads(12, 2, 128)
    written = Written.random(kernels, heads, scales_of(heads.kv))
    together = written.attend(kernels, [0, 1, 2, 3, 4])
    for row in range(len(REQUESTS)):
        assert np.array_equal(written.attend(kernels, [row])[0], together[row])
    one_by_one = make_cache(kernels, heads, written.batch.num_blocks, scales_of(heads.kv))
    for row in range(len(REQUESTS)):
        for token, slot in enumerate(written.batch.slots(row)):
            part = slice(token, token + 1)
            write(kernels, one_by_one, written.keys[row][part], written.values[row][part], np.array([slot]))
    written.cache = one_by_one
    for ours, expected in zip(written.attend(kernels, [4, 3, 2, 1, 0]), together[::-1], strict=True):
        assert np.array_equal(ours, expected)


def test_nothing_to_write_writes_nothing(kernels: Kernels) -> None:
    if kernels.chosen["paged_attention"] != "native":
        pytest.skip("no step without tokens reaches the reference")
    heads = Heads(2, 2, 8)
    cache = make_cache(kernels, heads, 2, scales_of(heads.kv))
    x = normal(1, 2, 8)
    write(kernels, cache, x, x, np.array([20]))
    before = stored(kernels, cache, np.array([20]), 8)
    write(kernels, cache, x[:0], x[:0], np.zeros(0, np.int64))
    assert all(np.array_equal(*pair) for pair in zip(before, stored(kernels, cache, np.array([20]), 8), strict=True))


ONES = np.ones((NUM_LAYERS, 2), np.float32)


@pytest.mark.parametrize(
    ("wrong", "dtype", "message"),
    [
        pytest.param(ONES[:2], "int8", r"\(2, 2\), not \(3, 2\)", id="too few layers"),
        pytest.param(ONES[:, :1], "int8", r"\(3, 1\), not \(3, 2\)", id="too few heads"),
        pytest.param(ONES.astype(np.float64), "int8", "float64", id="another type"),
        pytest.param(0 * ONES, "int8", "not above zero", id="zero"),
        pytest.param(np.nan * ONES, "int8", "not above zero", id="nan"),
        pytest.param(np.inf * ONES, "int8", "not finite", id="infinite"),
        pytest.param(ONES, "bfloat16", "a cache of bfloat16 has no scales", id="no integers"),
    ],
)
@pytest.mark.parametrize("which", ["key", "value"])
def test_scales_that_do_not_fit_are_a_bug(kernels: Kernels, which: str, wrong: Any, dtype: str, message: str) -> None:
    static = dataclasses.replace(StaticScales(ONES, ONES), **{which: wrong})
    with pytest.raises(AssertionError, match=message):
        make_cache(kernels, Heads(2, 2, 8), 2, static, dtype)


@pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))
def test_the_compiled_operator_does_not_read_beyond_scales_of_another_shape() -> None:
    cache = native.make_cache(NUM_LAYERS, 2, BLOCK_TOKENS, 2, 8, "int8", StaticScales(ONES, ONES))
    short = dataclasses.replace(cache, static_value_scales=paddle.ones([NUM_LAYERS - 1, 2]))
    x = paddle.ones([1, 2, 8])
    with pytest.raises(OSError, match="static scales are"):
        native.kv_write(short, LAYER, x, x, paddle.to_tensor([0]))
