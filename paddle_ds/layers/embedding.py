"""Token embedding."""

from __future__ import annotations

import paddle

from paddle_ds.layers.linear import dtype_name, nbytes


class Embedding:
    """``layer(ids)``: int64 [T] -> float32 [T, H]. The table stays in the type it was stored in."""

    def __init__(self, weight: paddle.Tensor) -> None:
        self.weight = weight

    def __call__(self, ids: paddle.Tensor) -> paddle.Tensor:
        return paddle.gather(self.weight, ids).astype("float32")

    def weight_bytes(self) -> dict[str, int]:
        return {dtype_name(self.weight): nbytes(self.weight)}
