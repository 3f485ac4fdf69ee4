"""``KvCache``: keys and values of all layers. How they lie inside is the business of the operators that were chosen."""

from __future__ import annotations

from dataclasses import dataclass

import paddle

from paddle_ds.config.engine import KvDtype

__all__ = ["KvCache", "KvDtype"]


@dataclass(frozen=True)
class KvCache:
    """``keys[layer]`` and ``values[layer]`` are tensors; together they may be one tensor or a list."""

    keys: paddle.Tensor | list[paddle.Tensor]
    values: paddle.Tensor | list[paddle.Tensor]
    #: float32, of ``int8`` caches; for the others their content is not looked at
    key_scales: paddle.Tensor | list[paddle.Tensor]
    value_scales: paddle.Tensor | list[paddle.Tensor]
