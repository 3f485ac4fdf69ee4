"""Token embedding."""

from __future__ import annotations

import paddle

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
