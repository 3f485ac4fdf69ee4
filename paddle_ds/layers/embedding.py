"""Token embedding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.kernels.upload import upload
from paddle_ds.layers.linear import dtype_name, nbytes

#: rows after which a mapped table's pages are given back: the system maps some 64 kB for each row that is looked at
_RELEASED_ROWS = 128


class Embedding:
    """``layer(ids)``: int64 [T] -> float32 [T, H]. The table stays in the type it was stored in."""

    def __init__(self, weight: paddle.Tensor) -> None:
        self.weight = weight
        # Paddle's CPU gather knows no float16: rows are gathered as 16-bit integers, which changes no bit. Elsewhere it does, and
        # a view of another type may be what is missing
        as_integers = weight.dtype == paddle.float16 and weight.place.is_cpu_place()
        self._rows = weight.view("int16") if as_integers else weight

    def __call__(self, ids: paddle.Tensor) -> paddle.Tensor:
        rows = paddle.gather(self._rows, ids)
        return rows.view(dtype_name(self.weight)).astype("float32") if self._rows is not self.weight else rows.astype("float32")

    def weight_bytes(self) -> dict[str, int]:
        return {dtype_name(self.weight): nbytes(self.weight)}


class MappedEmbedding:
    """The same over a table that stays in its file: only the pages of rows that are used become resident.

    Args:
        values: [vocab, H], a view of the mapped file; bfloat16 as uint16.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        release: gives the pages that became resident back to the system.
    """

    def __init__(self, values: npt.NDArray[np.generic], dtype: str, release: Callable[[], None] = lambda: None) -> None:
        assert dtype in ("float32", "float16", "bfloat16")
        self._values = values
        self._dtype = dtype
        self._release = release
        self._num_rows_read = 0

    def __call__(self, ids: paddle.Tensor) -> paddle.Tensor:
        rows = self._gather(ids.numpy())
        if self._dtype == "bfloat16":
            return upload((rows.astype(np.uint32) << 16).view(np.float32))
        return upload(rows.astype(np.float32))

    def _gather(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.generic]:
        rows = np.empty((len(ids), self._values.shape[1]), self._values.dtype)
        for first in range(0, len(ids), _RELEASED_ROWS):
            piece = ids[first : first + _RELEASED_ROWS]
            rows[first : first + len(piece)] = self._values[piece]
            self._num_rows_read += len(piece)
            if self._num_rows_read >= _RELEASED_ROWS:
                self._release()
                self._num_rows_read = 0
        return rows

    def weight_bytes(self) -> dict[str, int]:
        return {f"{self._dtype} (mapped)": int(self._values.nbytes)}
