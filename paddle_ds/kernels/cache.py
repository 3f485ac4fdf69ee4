"""``KvCache``: keys and values of all layers. How they lie inside is the business of the operators that were chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.config.engine import KvDtype

__all__ = ["KvCache", "KvDtype", "StaticScales", "static_tensors"]


@dataclass(frozen=True, eq=False)
class StaticScales:
    """Scales of an ``int8`` cache that were found before serving, float32 ``[layers, kv_heads]`` each.

    ``q = clip(round_half_even(x / scale), -127, 127)`` for rotated keys and for values; both are read back as ``q * scale``.
    """

    key: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]


@dataclass(frozen=True)
class KvCache:
    """``keys[layer]`` and ``values[layer]`` are tensors; together they may be one tensor or a list."""

    keys: paddle.Tensor | list[paddle.Tensor]
    values: paddle.Tensor | list[paddle.Tensor]
    #: float32, of ``int8`` caches, one a token and head: static ones, too, so that readers need not know; for the others their
    #: content is not looked at
    key_scales: paddle.Tensor | list[paddle.Tensor]
    value_scales: paddle.Tensor | list[paddle.Tensor]
    #: :class:`StaticScales`, for who writes; ``[0, kv_heads]`` where each token and head finds its own
    static_key_scales: paddle.Tensor
    static_value_scales: paddle.Tensor


def static_tensors(
    static: StaticScales | None, num_layers: int, kv_heads: int, dtype: KvDtype
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """``static_key_scales`` and ``static_value_scales`` of a cache of these sizes. The reader has checked the scales."""
    if static is None:
        return paddle.empty([0, kv_heads], dtype="float32"), paddle.empty([0, kv_heads], dtype="float32")
    assert dtype == "int8", f"a cache of {dtype} has no scales"
    for scales in (static.key, static.value):
        assert scales.shape == (num_layers, kv_heads), f"{scales.shape}, not {(num_layers, kv_heads)}"
        assert scales.dtype == np.float32, f"{scales.dtype}, not float32"
        assert bool((np.isfinite(scales) & (scales > 0)).all()), "a scale is not above zero or not finite"
    return paddle.to_tensor(static.key), paddle.to_tensor(static.value)
