"""Fixed scales of an INT8 cache: what keys (after rotary) and values of a layer reach on the calibration text, head by head."""

from __future__ import annotations

import numpy as np

from paddle_ds.checkpoints.base import KvScales
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.layers import RotaryTable
from paddle_ds_slim.block_state import BlockState
from paddle_ds_slim.recipe import QuantRecipe


def static_scales(state: BlockState, recipe: QuantRecipe, lengths: list[int]) -> KvScales | None:
    """Scales of one layer, or ``None`` where the recipe asks for none. ``lengths``: tokens of each calibration sequence."""
    if recipe.kv_cache is None or recipe.kv_cache.scales != "static":
        return None
    observer = recipe.kv_cache.observer
    keys = _rotated(state, _projected(state, "self_attn.k_proj"), lengths)
    return KvScales(_scales(keys, observer), _scales(_projected(state, "self_attn.v_proj"), observer))


def _projected(state: BlockState, linear: str) -> Float32Array:
    """float32 ``[tokens, kv heads, head_dim]``."""
    y = state.input_of(linear) @ state.weight(linear).T
    bias = state.tensors.get(f"{linear}.bias")
    y = y if bias is None else y + bias
    return y.reshape(len(y), state.config.num_kv_heads, state.config.head_dim)


def _rotated(state: BlockState, keys: Float32Array, lengths: list[int]) -> Float32Array:
    positions = np.concatenate([np.arange(length) for length in lengths])
    cos, sin = (half[:, None, :] for half in RotaryTable(state.config).cos_sin(positions))
    first, second = np.split(keys, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _scales(values: Float32Array, observer: str) -> Float32Array:
    """float32 ``[kv heads]``, all above zero."""
    from paddle_ds_slim.paddleslim_adapter import observer_scale  # its import of PaddleSlim takes seconds

    heads = values.shape[1]
    scales = np.array([observer_scale(observer, [values[:, head]]) for head in range(heads)], np.float32)
    scales[~(scales > 0)] = 1.0
    return scales
