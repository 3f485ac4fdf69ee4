"""One decoder for Qwen2 and Llama: the config says which biases exist, how heads are grouped, how positions are turned.

tokens ─ embedding ─┬─ norm ─ qkv ─ rotary ─ paged attention ─ o ─┬─ norm ─ gate·up ─ silu·mul ─ down ─┬─ … ─ norm ─ head
                    └──────────────────────────────────────────── +┴──────────────────────────────────── +
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import paddle

from paddle_ds.config.model import ModelConfig
from paddle_ds.kernels.layout import BatchLayout
from paddle_ds.kernels.registry import Kernels
from paddle_ds.layers import Embedding, Linear, RMSNorm


class ParameterSource(Protocol):
    """Where a decoder gets its layers from: a checkpoint, or a test."""

    def linear(self, *prefixes: str) -> Linear:
        """The linear layers of these names, stacked along their outputs into one."""

    def embedding(self, name: str) -> Embedding: ...

    def norm(self, name: str) -> RMSNorm: ...

    def head(self, embedding: Embedding) -> Linear:
        """The output projection; a tied one is made from the embedding."""


@dataclass(frozen=True)
class KvCache:
    """Keys and values of all layers, each float32 [num_slots, kv_heads, head_dim]."""

    keys: list[paddle.Tensor]
    values: list[paddle.Tensor]


class DecoderLayer:
    """Attention and MLP of one layer."""

    def __init__(self, config: ModelConfig, index: int, source: ParameterSource, kernels: Kernels) -> None:
        prefix = f"model.layers.{index}"
        self._config = config
        self._kernels = kernels
        self.input_norm = source.norm(f"{prefix}.input_layernorm.weight")
        attention = f"{prefix}.self_attn"
        self.qkv = source.linear(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        self.o = source.linear(f"{attention}.o_proj")
        self.post_norm = source.norm(f"{prefix}.post_attention_layernorm.weight")
        self.gate_up = source.linear(f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj")
        self.down = source.linear(f"{prefix}.mlp.down_proj")

    def __call__(self, x: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, layout: BatchLayout) -> paddle.Tensor:
        """float32 [T, H] -> float32 [T, H]; writes this step's keys and values into the cache."""
        x = x + self._attention(self.input_norm(x), keys, values, layout)
        return x + self.down(self._kernels.silu_mul(self.gate_up(self.post_norm(x))))

    def _attention(self, x: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, layout: BatchLayout) -> paddle.Tensor:
        config, kernels = self._config, self._kernels
        num_tokens = x.shape[0]
        query, key, value = paddle.split(self.qkv(x), [config.q_size, config.kv_size, config.kv_size], axis=-1)
        query = query.reshape([num_tokens, config.num_heads, config.head_dim])
        key = key.reshape([num_tokens, config.num_kv_heads, config.head_dim])
        value = value.reshape([num_tokens, config.num_kv_heads, config.head_dim])
        query = kernels.rotary(query, layout.cos, layout.sin)
        kernels.kv_write(keys, kernels.rotary(key, layout.cos, layout.sin), layout.slots)
        kernels.kv_write(values, value, layout.slots)
        return self.o(kernels.paged_attention(query, keys, values, layout))

    def parts(self) -> list[Linear | RMSNorm]:
        return [self.input_norm, self.qkv, self.o, self.post_norm, self.gate_up, self.down]


class Decoder:
    """The whole model."""

    def __init__(
        self,
        config: ModelConfig,
        source: ParameterSource,
        kernels: Kernels,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.config = config
        self.embedding = source.embedding("model.embed_tokens.weight")
        self.layers: list[DecoderLayer] = []
        for index in range(config.num_layers):
            self.layers.append(DecoderLayer(config, index, source, kernels))
            progress((index + 1) / (config.num_layers + 1))
        self.norm = source.norm("model.norm.weight")
        self.head = source.head(self.embedding)
        progress(1.0)

    def hidden(self, ids: paddle.Tensor, cache: KvCache, layout: BatchLayout) -> paddle.Tensor:
        """int64 [T] -> float32 [T, H], before the final norm."""
        x = self.embedding(ids)
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x = layer(x, keys, values, layout)
        return x

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """float32 [S, H] of the rows that are sampled -> float32 [S, vocab]."""
        return self.head(self.norm(hidden))

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of parameters in memory, by dtype."""
        total: dict[str, int] = {}
        parts: list[Linear | RMSNorm | Embedding] = [self.embedding, self.norm, self.head]
        for layer in self.layers:
            parts += layer.parts()
        for part in parts:
            for dtype, count in part.weight_bytes().items():
                total[dtype] = total.get(dtype, 0) + count
        return total
