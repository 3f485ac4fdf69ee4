"""Causal attention over the paged KV cache, with grouped query heads (arXiv 2305.13245).

Query head ``h`` reads key and value head ``h // (heads / kv_heads)``; scores are scaled by ``1 / sqrt(D)``.
"""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_ds.kernels.cache import KvCache
from paddle_ds.kernels.layout import BatchLayout, DecodeGroup, PrefillGroup

#: attention scores held at a time, which bounds the temporary memory of a long prompt (4 bytes each, three copies)
_MAX_SCORES = 1 << 23


def write_reference(cache: paddle.Tensor, values: paddle.Tensor, slots: paddle.Tensor) -> None:
    """In place: ``values`` float32 [T, kv_heads, D] go to ``slots`` int64 [T] of ``cache`` float32 [num_slots, kv_heads, D]."""
    cache.scatter_(slots, values, overwrite=True)


def reference(query: paddle.Tensor, key_cache: paddle.Tensor, value_cache: paddle.Tensor, layout: BatchLayout) -> paddle.Tensor:
    """Attention of a ragged batch whose keys and values are in the cache already.

    Args:
        query: float32 [T, heads, D], rotated.
        key_cache, value_cache: float32 [num_slots, kv_heads, D].

    Returns:
        float32 [T, heads * D].
    """
    num_tokens = query.shape[0]
    pieces: list[tuple[int, paddle.Tensor]] = []
    for group in layout.prefill_groups:
        pieces.append((group.start, _prefill(query, key_cache, value_cache, group)))
    for decode in layout.decode_groups:
        rows = paddle.gather(query, paddle.to_tensor(decode.rows))
        out = _decode(rows, key_cache, value_cache, decode)
        if len(decode.rows) == num_tokens and bool((np.diff(decode.rows) == 1).all()):
            return out
        pieces += [(int(start), out[i : i + 1]) for i, start in enumerate(decode.rows)]
    return paddle.concat([piece for _, piece in sorted(pieces, key=lambda item: item[0])], axis=0)


def _decode(query: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, group: DecodeGroup) -> paddle.Tensor:
    num_rows, heads, dim = query.shape
    kv_heads = keys.shape[1]
    q = query.reshape([num_rows, kv_heads, heads // kv_heads, dim]) * dim**-0.5
    k = paddle.gather(keys, group.slots).reshape([num_rows, -1, kv_heads, dim]).transpose([0, 2, 3, 1])
    v = paddle.gather(values, group.slots).reshape([num_rows, -1, kv_heads, dim]).transpose([0, 2, 1, 3])
    weights = F.softmax(paddle.matmul(q, k) + group.mask, axis=-1)
    return paddle.matmul(weights, v).reshape([num_rows, heads * dim])


def _prefill(query: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, group: PrefillGroup) -> paddle.Tensor:
    _, heads, dim = query.shape
    kv_heads = keys.shape[1]
    k = paddle.gather(keys, group.slots).transpose([1, 2, 0]).unsqueeze(1)
    v = paddle.gather(values, group.slots).transpose([1, 0, 2]).unsqueeze(1)
    context = int(group.slots.shape[0])
    rows = max(1, _MAX_SCORES // (heads * context))
    pieces = []
    for start in range(group.start, group.stop, rows):
        stop = min(start + rows, group.stop)
        positions = group.first_position + np.arange(start - group.start, stop - group.start)
        visible = np.arange(context)[None, :] <= positions[:, None]
        mask = paddle.to_tensor(np.where(visible, 0.0, -np.inf).astype(np.float32))
        q = query[start:stop].transpose([1, 0, 2]).reshape([kv_heads, heads // kv_heads, stop - start, dim])
        weights = F.softmax(paddle.matmul(q * dim**-0.5, k) + mask, axis=-1)
        out = paddle.matmul(weights, v).reshape([heads, stop - start, dim])
        pieces.append(out.transpose([1, 0, 2]).reshape([stop - start, heads * dim]))
    return pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=0)


def make_cache(num_layers: int, num_blocks: int, block_tokens: int, kv_heads: int, head_dim: int) -> KvCache:
    """A cache for :func:`kv_write` and :func:`attend`. Its pages become resident only as they are written."""
    shape = [num_blocks * block_tokens, kv_heads, head_dim]
    return KvCache(
        keys=[paddle.empty(shape, dtype="float32") for _ in range(num_layers)],
        values=[paddle.empty(shape, dtype="float32") for _ in range(num_layers)],
    )


def kv_write(cache: KvCache, layer: int, key: paddle.Tensor, value: paddle.Tensor, slots: paddle.Tensor) -> None:
    """Put rotated keys and values, float32 [T, kv_heads, D], of layer ``layer`` to ``slots`` int64 [T]."""
    write_reference(cache.keys[layer], key, slots)
    write_reference(cache.values[layer], value, slots)


def attend(query: paddle.Tensor, cache: KvCache, layer: int, layout: BatchLayout) -> paddle.Tensor:
    """:func:`reference` over the cache of layer ``layer``."""
    return reference(query, cache.keys[layer], cache.values[layer], layout)
