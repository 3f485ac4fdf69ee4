"""An embedding table that stays in its file: the same rows, and its pages are given back."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from paddle_ds.layers import MappedEmbedding


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_those_of_the_table(dtype: str) -> None:
    table = np.random.default_rng(0).standard_normal((300, 7)).astype(np.float32)
    stored = (table.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else table.astype(dtype)
    expected = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored.astype(np.float32)
    ids = np.random.default_rng(1).integers(0, 300, 260)
    assert np.array_equal(MappedEmbedding(stored, dtype)(paddle.to_tensor(ids)).numpy(), expected[ids])
    assert MappedEmbedding(stored, dtype)(paddle.zeros([0], dtype="int64")).shape == [0, 7]


def test_pages_are_given_back_after_every_128_rows() -> None:
    released: list[int] = []
    layer = MappedEmbedding(np.zeros((10, 4), np.float32), "float32", lambda: released.append(1))
    for count in (100, 27, 1, 300, 84):
        layer(paddle.zeros([count], dtype="int64"))
    assert len(released) == 4
