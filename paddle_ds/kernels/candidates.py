"""The most likely next tokens: what sampling looks at, so that it need not look at a whole vocabulary of 152k logits.

For each row of logits ``x`` and its temperature ``t``:

    ids, values   the ``count`` largest logits, by falling logit, equal ones by rising id
    total         sum_i exp((x[i] - max x) / t)

At temperature 0 only the largest is looked for; the other places hold id -1 and minus infinity, and ``total`` is 1. A row that is
not finite gives its first NaN or its infinity first; what follows does not matter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import paddle


class Candidates(NamedTuple):
    """Of S rows: ``ids`` int64 [S, count], ``values`` float32 [S, count], ``totals`` float64 [S]."""

    ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    totals: npt.NDArray[np.float64]


def reference(logits: paddle.Tensor, num_tokens: int, temperatures: npt.NDArray[np.float32], count: int) -> Candidates:
    """``logits`` float32 [S, vocab], of which ids from ``num_tokens`` up are padding; ``temperatures`` float32 [S]."""
    rows = logits.numpy()[:, :num_tokens]
    ids = np.full((len(rows), count), -1, np.int64)
    values = np.full((len(rows), count), -np.inf, np.float32)
    totals = np.ones(len(rows))
    for index, (row, temperature) in enumerate(zip(rows, temperatures, strict=True)):
        best = int(row.argmax())
        ids[index, 0], values[index, 0] = best, row[best]
        if temperature == 0 or not np.isfinite(row[best]):
            continue
        ids[index] = np.argsort(-row, kind="stable")[:count]
        values[index] = row[ids[index]]
        with np.errstate(over="ignore"):  # a tiny temperature: all but the largest go to exp(-inf) = 0
            totals[index] = np.exp((row.astype(np.float64) - float(row[best])) / float(temperature)).sum()
    return Candidates(ids, values, totals)
