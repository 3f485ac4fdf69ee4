"""Causal attention over the paged KV cache, with grouped query heads (arXiv 2305.13245).

Query head ``h`` reads key and value head ``h // (heads / kv_heads)``; scores are scaled by ``1 / sqrt(D)``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_ds.kernels.cache import KvCache, KvDtype, StaticScales, static_tensors
from paddle_ds.kernels.int8_linear import quantize_activations
from paddle_ds.kernels.layout import BatchLayout, DecodeGroup, PrefillGroup

#: slots int64 [L] -> float32 [L, kv_heads, D]
Rows = Callable[[paddle.Tensor], paddle.Tensor]


def reference(query: paddle.Tensor, keys: Rows, values: Rows, layout: BatchLayout) -> paddle.Tensor:
    """Attention of a ragged batch whose keys and values are in the cache already.

    Args:
        query: float32 [T, heads, D], rotated.
        keys, values: what the cache holds in given slots.

    Returns:
        float32 [T, heads * D].
    """
    num_tokens = query.shape[0]
    pieces: list[tuple[int, paddle.Tensor]] = []
    for group in layout.prefill_groups:
        rows_at_a_time = layout.rows_at_a_time(query.shape[1], int(group.slots.shape[0]))
        pieces.append((group.start, _prefill(query, keys, values, group, rows_at_a_time)))
    for decode in layout.decode_groups:
        rows = paddle.gather(query, decode.row_ids)
        out = _decode(rows, keys, values, decode)
        if len(decode.rows) == num_tokens and bool((np.diff(decode.rows) == 1).all()):
            return out
        pieces += [(int(start), out[i : i + 1]) for i, start in enumerate(decode.rows)]
    return paddle.concat([piece for _, piece in sorted(pieces, key=lambda item: item[0])], axis=0)


def _decode(query: paddle.Tensor, keys: Rows, values: Rows, group: DecodeGroup) -> paddle.Tensor:
    num_rows, heads, dim = query.shape
    k, v = keys(group.slots), values(group.slots)
    kv_heads = k.shape[1]
    q = query.reshape([num_rows, kv_heads, heads // kv_heads, dim]) * dim**-0.5
    k = k.reshape([num_rows, -1, kv_heads, dim]).transpose([0, 2, 3, 1])
    v = v.reshape([num_rows, -1, kv_heads, dim]).transpose([0, 2, 1, 3])
    weights = F.softmax(paddle.matmul(q, k) + group.mask, axis=-1)
    return paddle.matmul(weights, v).reshape([num_rows, heads * dim])


def _prefill(query: paddle.Tensor, keys: Rows, values: Rows, group: PrefillGroup, rows_at_a_time: int) -> paddle.Tensor:
    _, heads, dim = query.shape
    k, v = keys(group.slots), values(group.slots)
    kv_heads = k.shape[1]
    k = k.transpose([1, 2, 0]).unsqueeze(1)
    v = v.transpose([1, 0, 2]).unsqueeze(1)
    pieces = []
    for start, stop, mask in group.masks(rows_at_a_time):
        q = query[start:stop].transpose([1, 0, 2]).reshape([kv_heads, heads // kv_heads, stop - start, dim])
        weights = F.softmax(paddle.matmul(q * dim**-0.5, k) + mask, axis=-1)
        out = paddle.matmul(weights, v).reshape([heads, stop - start, dim])
        pieces.append(out.transpose([1, 0, 2]).reshape([stop - start, heads * dim]))
    return pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=0)


def make_cache(
    num_layers: int,
    num_blocks: int,
    block_tokens: int,
    kv_heads: int,
    head_dim: int,
    dtype: KvDtype = "float32",
    static: StaticScales | None = None,
) -> KvCache:
    """A cache for :func:`kv_write` and :func:`attend`. Its pages become resident only as they are written.

    Args:
        static: scales for ``int8``; without them each token and head finds its own.
    """
    num_slots = num_blocks * block_tokens

    def tensors(*shape: int, of: str) -> list[paddle.Tensor]:
        return [paddle.empty(shape, dtype=of) for _ in range(num_layers)]

    scale_slots = num_slots if dtype == "int8" else 0
    static_keys, static_values = static_tensors(static, num_layers, kv_heads, dtype)
    return KvCache(
        keys=tensors(num_slots, kv_heads, head_dim, of=dtype),
        values=tensors(num_slots, kv_heads, head_dim, of=dtype),
        key_scales=tensors(scale_slots, kv_heads, 1, of="float32"),
        value_scales=tensors(scale_slots, kv_heads, 1, of="float32"),
        static_key_scales=static_keys,
        static_value_scales=static_values,
    )


def kv_write(cache: KvCache, layer: int, key: paddle.Tensor, value: paddle.Tensor, slots: paddle.Tensor) -> None:
    """Put rotated keys and values, float32 [T, kv_heads, D], of layer ``layer`` to ``slots`` int64 [T]."""
    _write(cache.keys[layer], cache.key_scales[layer], _of_layer(cache.static_key_scales, layer), key, slots)
    _write(cache.values[layer], cache.value_scales[layer], _of_layer(cache.static_value_scales, layer), value, slots)


def attend(query: paddle.Tensor, cache: KvCache, layer: int, layout: BatchLayout) -> paddle.Tensor:
    """:func:`reference` over the cache of layer ``layer``."""
    keys = _reader(cache.keys[layer], cache.key_scales[layer])
    return reference(query, keys, _reader(cache.values[layer], cache.value_scales[layer]), layout)


def _of_layer(static: paddle.Tensor, layer: int) -> paddle.Tensor | None:
    """float32 [kv_heads, 1], or ``None`` where there are none."""
    return static[layer].unsqueeze(-1) if static.shape[0] else None


def _write(
    tensor: paddle.Tensor, scales: paddle.Tensor, static: paddle.Tensor | None, rows: paddle.Tensor, slots: paddle.Tensor
) -> None:
    if tensor.dtype == paddle.int8:
        # one scale a token and head: the last axis is one head
        rows, row_scales = quantize_activations(rows) if static is None else _quantize(rows, static)
        paddle.index_put_(scales, (slots,), row_scales)
    paddle.index_put_(tensor, (slots,), rows.astype(tensor.dtype))


def _quantize(rows: paddle.Tensor, static: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """float32 [T, kv_heads, D], scales [kv_heads, 1] -> integers as float32, scales [T, kv_heads, 1]."""
    poison = (rows * 0).sum(axis=-1, keepdim=True)  # NaN where a row is not finite: it must reach the logits and be found there
    return paddle.clip(paddle.round(rows / static), -127, 127), static + poison


def _reader(tensor: paddle.Tensor, scales: paddle.Tensor) -> Rows:
    def read(slots: paddle.Tensor) -> paddle.Tensor:
        rows = paddle.gather(tensor, slots).astype("float32")
        return rows * paddle.gather(scales, slots) if tensor.dtype == paddle.int8 else rows

    return read
