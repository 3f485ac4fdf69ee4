"""Token embedding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.kernels.upload import upload
from paddle_ds.layers.linear import dtype_name, nbytes


class Embedding:
    """``layer(ids)``: int64 [T] -> float32 [T, H]. The table stays in the type it was stored in."""

    def __init__(self, weight: paddle.Tensor) -> None:
        self.weight = weight
        # Paddle's CPU gather knows no float16: rows are gathered as 16-bit integers, which changes no bit
        self._rows = weight.view("int16") if weight.dtype == paddle.float16 else weight

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
    """

    def __init__(self, values: npt.NDArray[np.generic], dtype: str) -> None:
        assert dtype in ("float32", "float16", "bfloat16")
        self._values = values
        self._dtype = dtype

    def __call__(self, ids: paddle.Tensor) -> paddle.Tensor:
        rows = self._values[ids.numpy()]
        if self._dtype == "bfloat16":
            return upload((rows.astype(np.uint32) << 16).view(np.float32))
        return upload(rows.astype(np.float32))

    def weight_bytes(self) -> dict[str, int]:
        return {f"{self._dtype} (mapped)": int(self._values.nbytes)}
