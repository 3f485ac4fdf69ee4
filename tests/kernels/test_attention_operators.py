"""Paged attention and what writes its cache, against attention written as loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import pytest

from paddle_ds.kernels.layout import BatchLayout
from paddle_ds.kernels.registry import Kernels

Array = npt.NDArray[np.float32]
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Heads:
    """query heads, key heads, elements of a head"""

    query: int = 4
    kv: int = 2
    dim: int = 16


class Batch:
    """Requests as (tokens in the context, how many of them are new); their blocks lie in random order."""

    def __init__(self, requests: list[tuple[int, int]], heads: Heads, seed: int = 0) -> None:
        self.requests, self.heads = requests, heads
        self._random = np.random.default_rng(seed)
        needed = [-(-context // BLOCK_TOKENS) for context, _ in requests]
        self.num_blocks = sum(needed) + 3
        free = self._random.permutation(self.num_blocks)
        self.tables = np.zeros((len(requests), max(needed)), np.int32)
        for row, count in enumerate(needed):
            self.tables[row, :count], free = free[:count], free[count:]
        self.keys = [self._normal(context, heads.kv) for context, _ in requests]
        self.values = [self._normal(context, heads.kv) for context, _ in requests]
        self.queries = [self._normal(new, heads.query) for _, new in requests]

    def _normal(self, tokens: int, heads: int) -> Array:
        return self._random.standard_normal((tokens, heads, self.heads.dim)).astype(np.float32)

    def slots(self, row: int) -> npt.NDArray[np.int64]:
        positions = np.arange(self.requests[row][0])
        return self.tables[row][positions // BLOCK_TOKENS].astype(np.int64) * BLOCK_TOKENS + positions % BLOCK_TOKENS

    def layout(self, rows: list[int]) -> BatchLayout:
        lengths = [self.requests[row][1] for row in rows]
        new_slots = [self.slots(row)[-length:] for row, length in zip(rows, lengths, strict=True)]
        angles = paddle.zeros([sum(lengths), self.heads.dim // 2])
        return BatchLayout(
            query_starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            context_lens=np.array([self.requests[row][0] for row in rows], np.int32),
            block_tables=self.tables[rows],
            block_tokens=BLOCK_TOKENS,
            slots=paddle.to_tensor(np.concatenate(new_slots)),
            cos=angles,
            sin=angles,
        )

    def make_cache(self, kernels: Kernels, num_layers: int = 1, layer: int = 0) -> Any:
        """A cache that holds every key and value of the batch."""
        attention = kernels.paged_attention
        cache = attention.make_cache(num_layers, self.num_blocks, BLOCK_TOKENS, self.heads.kv, self.heads.dim)
        for row in range(len(self.requests)):
            slots = paddle.to_tensor(self.slots(row))
            attention.kv_write(cache, layer, paddle.to_tensor(self.keys[row]), paddle.to_tensor(self.values[row]), slots)
        return cache

    def attend(self, kernels: Kernels, cache: Any, rows: list[int] | None = None, layer: int = 0) -> list[Array]:
        """One array [new tokens, heads * dim] for each of ``rows``."""
        rows = list(range(len(self.requests))) if rows is None else rows
        query = paddle.to_tensor(np.concatenate([self.queries[row] for row in rows]))
        out = kernels.paged_attention.attend(query, cache, layer, self.layout(rows)).numpy()
        return np.split(out, np.cumsum([self.requests[row][1] for row in rows])[:-1])

    def expected(self, row: int) -> npt.NDArray[np.float64]:
        context, new = self.requests[row]
        group = self.heads.query // self.heads.kv
        out = np.empty((new, self.heads.query, self.heads.dim))
        for index in range(new):
            seen = context - new + index + 1
            for head in range(self.heads.query):
                keys = self.keys[row][:seen, head // group].astype(np.float64)
                scores = keys @ self.queries[row][index, head] / np.sqrt(self.heads.dim)
                weights = np.exp(scores - scores.max())
                out[index, head] = weights @ self.values[row][:seen, head // group] / weights.sum()
        return out.reshape(new, -1)


def check(kernels: Kernels, batch: Batch) -> None:
    for row, out in enumerate(batch.attend(kernels, batch.make_cache(kernels))):
        np.testing.assert_allclose(out, batch.expected(row), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "requests",
    [
        [(1, 1)],
        [(17, 1)],
        [(16, 16)],
        [(33, 33)],
        [(40, 7)],
        [(1, 1), (500, 1), (16, 1), (17, 1), (3, 1)],
        [(5, 5), (16, 16), (49, 49)],
        [(30, 1), (20, 20), (31, 1), (64, 10), (1, 1), (90, 13)],
        [(8, 8), (9, 1), (10, 1)],
        [(100 + i, 1 + i % 3) for i in range(20)],
    ],
    ids=str,
)
def test_prefill_decode_and_both_together(kernels: Kernels, requests: list[tuple[int, int]]) -> None:
    check(kernels, Batch(requests, Heads()))


@pytest.mark.parametrize(
    "heads",
    [Heads(1, 1, 2), Heads(3, 3, 8), Heads(6, 2, 32), Heads(12, 2, 128), Heads(7, 1, 64), Heads(4, 4, 20), Heads(28, 4, 6)],
    ids=lambda heads: f"{heads.query}-{heads.kv}-{heads.dim}",
)
def test_every_grouping_of_heads(kernels: Kernels, heads: Heads) -> None:
    check(kernels, Batch([(21, 1), (35, 18), (16, 1), (3, 3)], heads))


def test_a_prompt_longer_than_the_scores_held_at_a_time(kernels: Kernels) -> None:
    check(kernels, Batch([(1100, 1100)], Heads(8, 1, 4)))


def test_decodes_that_are_gathered_in_several_groups(kernels: Kernels) -> None:
    check(kernels, Batch([(40_000, 1), (3, 1), (30_000, 1), (2, 1), (66_000, 1)], Heads(1, 1, 2)))


@pytest.mark.parametrize("pieces", [[40], [1] * 40, [16, 16, 8], [7, 1, 20, 12]], ids=str)
def test_a_prompt_in_pieces_is_the_prompt_at_once(kernels: Kernels, pieces: list[int]) -> None:
    whole = Batch([(40, 40)], Heads())
    cache = whole.make_cache(kernels)
    for start, stop in zip(np.cumsum([0, *pieces[:-1]]), np.cumsum(pieces), strict=True):
        piece = Batch([(40, 40)], Heads())
        piece.requests = [(int(stop), int(stop - start))]
        piece.queries = [whole.queries[0][start:stop]]
        np.testing.assert_allclose(piece.attend(kernels, cache)[0], whole.expected(0)[start:stop], rtol=2e-5, atol=2e-5)


def test_compiled_attention_gives_a_request_the_same_bits_in_every_company(kernels: Kernels) -> None:
    if kernels.chosen["paged_attention"] != "native":
        pytest.skip("only the compiled operators promise it")
    batch = Batch([(300, 1), (50, 50), (64, 9), (17, 1)], Heads(6, 2, 32))
    cache = batch.make_cache(kernels)
    together = batch.attend(kernels, cache)
    for row in range(4):
        assert (batch.attend(kernels, cache, [row])[0] == together[row]).all()
    assert (batch.attend(kernels, cache, [3, 1, 0])[1] == together[1]).all()
    prompt = batch.queries[1]
    for token in range(50):
        batch.requests[1], batch.queries[1] = (token + 1, 1), prompt[token : token + 1]
        assert (batch.attend(kernels, cache, [1])[0] == together[1][token : token + 1]).all()


def test_a_later_write_replaces_an_earlier_one(kernels: Kernels) -> None:
    batch = Batch([(1, 1)], Heads())
    cache = batch.make_cache(kernels)
    batch.values[0] = batch.values[0] + 1
    slots = paddle.to_tensor(batch.slots(0))
    kernels.paged_attention.kv_write(cache, 0, paddle.to_tensor(batch.keys[0]), paddle.to_tensor(batch.values[0]), slots)
    np.testing.assert_allclose(batch.attend(kernels, cache)[0], np.repeat(batch.values[0], 2, axis=1).reshape(1, -1), rtol=1e-6)


def test_a_write_touches_its_own_slots_only(kernels: Kernels) -> None:
    batch = Batch([(40, 1), (23, 1)], Heads())
    cache = batch.make_cache(kernels)
    before = batch.attend(kernels, cache)
    garbage = paddle.full([2, 2, 16], float("nan"))
    used = np.concatenate([batch.slots(0), batch.slots(1)])
    free = [slot for slot in range(batch.num_blocks * BLOCK_TOKENS) if slot not in used][:2]
    kernels.paged_attention.kv_write(cache, 0, garbage, garbage, paddle.to_tensor(free))
    for old, new in zip(before, batch.attend(kernels, cache), strict=True):
        assert (old == new).all()


def test_layers_have_caches_of_their_own(kernels: Kernels) -> None:
    batch, other = Batch([(20, 1)], Heads()), Batch([(20, 1)], Heads(), seed=1)
    cache = batch.make_cache(kernels, num_layers=3, layer=1)
    for layer in (0, 2):
        slots = paddle.to_tensor(other.slots(0))
        kernels.paged_attention.kv_write(cache, layer, paddle.to_tensor(other.keys[0]), paddle.to_tensor(other.values[0]), slots)
    np.testing.assert_allclose(batch.attend(kernels, cache, layer=1)[0], batch.expected(0), rtol=2e-5, atol=2e-5)


def test_a_fresh_cache_may_hold_anything(kernels: Kernels) -> None:
    batch = Batch([(5, 1)], Heads())
    cache = batch.make_cache(kernels)
    poison = paddle.full([11, 2, 16], float("nan"))
    last_slots = batch.slots(0)[-1] + 1 + np.arange(11)  # the rest of the block
    kernels.paged_attention.kv_write(cache, 0, poison, poison, paddle.to_tensor(last_slots))
    np.testing.assert_allclose(batch.attend(kernels, cache)[0], batch.expected(0), rtol=2e-5, atol=2e-5)


def test_large_scores_do_not_overflow(kernels: Kernels) -> None:
    batch = Batch([(20, 1), (20, 20)], Heads())
    batch.queries = [query * 1e4 for query in batch.queries]
    check(kernels, batch)
