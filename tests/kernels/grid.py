"""Inputs for the grids of sizes, and oracles in NumPy with double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.kernels.layout import BatchLayout

BLOCK_TOKENS = 16

Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Weights:
    """An INT8 layer's arguments: int8 [N, K], float32 [N], float32 [N] or ``None``."""

    values: Array
    scales: Array
    bias: Array | None

    @classmethod
    def random(cls, num_out: int, num_in: int, *, bias: bool = True) -> Weights:
        random = np.random.default_rng([num_out, num_in])
        values = random.integers(-127, 128, (num_out, num_in), dtype=np.int8)
        scales = random.uniform(1e-4, 1e-2, num_out).astype(np.float32)
        return cls(values, scales, normal(num_out) if bias else None)

    def make(self, layer: Any) -> Any:
        return layer(self.values, self.scales, self.bias)


def assert_close(ours: paddle.Tensor | Array, oracle: paddle.Tensor | Array, tolerance: float) -> None:
    """Elementwise within ``tolerance`` of the oracle's largest magnitude (of 1 where that is smaller)."""
    ours, oracle = (np.asarray(each) for each in (ours, oracle))
    assert ours.shape == oracle.shape
    if oracle.size:
        assert np.abs(ours - oracle).max() <= tolerance * max(1.0, float(np.abs(oracle).max()))


@dataclass(frozen=True)
class Heads:
    """query heads, key heads, elements of a head"""

    query: int
    kv: int
    dim: int


class Ragged:
    """Requests as (tokens in the context, how many of them are new), in blocks that lie in random order."""

    def __init__(self, requests: Sequence[tuple[int, int]], tables: npt.NDArray[np.int32] | None = None) -> None:
        self.requests = requests
        needed = [-(-context // BLOCK_TOKENS) for context, _ in requests]
        self.num_blocks = sum(needed) + 2
        order = np.random.default_rng(len(requests)).permutation(self.num_blocks)
        self.tables = np.zeros((len(requests), max(needed, default=1)), np.int32)
        for row, count in enumerate(needed):
            self.tables[row, :count], order = order[:count], order[count:]
        if tables is not None:
            self.tables = tables

    @property
    def num_new(self) -> int:
        return sum(new for _, new in self.requests)

    def slots(self, row: int, start: int = 0) -> npt.NDArray[np.int64]:
        """Of the request's tokens from ``start`` on."""
        positions = np.arange(start, self.requests[row][0])
        slots: npt.NDArray[np.int64] = self.tables[row][positions // BLOCK_TOKENS].astype(np.int64) * BLOCK_TOKENS
        return slots + positions % BLOCK_TOKENS

    def layout(self, half_dim: int) -> BatchLayout:
        """The step that computes the new tokens, with the angles of position / 2 ** pair."""
        starts = [(context - new, context) for context, new in self.requests]
        positions = np.concatenate([np.arange(0), *(np.arange(*each) for each in starts)])
        angles = np.outer(positions, 0.5 ** np.arange(half_dim)).astype(np.float32)
        slots = [self.slots(row, first) for row, (first, _) in enumerate(starts)]
        return BatchLayout(
            query_starts=np.concatenate([[0], np.cumsum([new for _, new in self.requests])]).astype(np.int32),
            context_lens=np.array([context for context, _ in self.requests], np.int32),
            block_tables=self.tables,
            block_tokens=BLOCK_TOKENS,
            slots=paddle.to_tensor(np.concatenate([np.zeros(0, np.int64), *slots])),
            cos=paddle.to_tensor(np.cos(angles)),
            sin=paddle.to_tensor(np.sin(angles)),
        )


def attention_oracle(query: Array, keys: Array, values: Array, heads: Heads, last_rows: int | None = None) -> Array:
    """Causal attention of one request, float64 [rows, heads * dim]; of the last rows only where there are many.

    Args:
        query: [new, heads, dim]; ``keys`` and ``values``: [context, kv_heads, dim].
    """
    context, new, group = len(keys), len(query), heads.query // heads.kv
    rows = min(new, last_rows or new)
    visible = np.arange(context)[None, :] <= np.arange(context - rows, context)[:, None]
    out = np.empty((rows, heads.query, heads.dim))
    for head in range(heads.query):
        scores = query[new - rows :, head].astype(np.float64) @ keys[:, head // group].T.astype(np.float64)
        scores = np.where(visible, scores / np.sqrt(heads.dim), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights @ values[:, head // group] / weights.sum(axis=1, keepdims=True)
    return out.reshape(rows, -1)
