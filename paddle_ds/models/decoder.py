"""One decoder for Qwen2 and Llama: the config says which biases exist, how heads are grouped, how positions are turned.

tokens ─ embedding ─┬─ norm ─ qkv ─ rotary ─ paged attention ─ o ─┬─ norm ─ gate·up ─ silu·mul ─ down ─┬─ … ─ norm ─ head
                    └──────────────────────────────────────────── +┴──────────────────────────────────── +
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import paddle

from paddle_ds.config.model import ModelConfig
from paddle_ds.kernels.cache import KvCache, KvDtype, StaticScales
from paddle_ds.kernels.layout import BatchLayout
from paddle_ds.kernels.native import NativeInt8Linear
from paddle_ds.kernels.registry import Kernels
from paddle_ds.layers import Embedding, Linear, MappedEmbedding, RMSNorm


class ParameterSource(Protocol):
    """Where a decoder gets its layers from: a checkpoint, or a test."""

    def linear(self, *prefixes: str) -> Linear:
        """The linear layers of these names, stacked along their outputs into one."""

    def embedding(self, name: str) -> Embedding | MappedEmbedding: ...

    def norm(self, name: str) -> RMSNorm: ...

    def head(self, embedding: Embedding | MappedEmbedding) -> Linear:
        """The output projection; a tied one is made from the embedding."""


class DecoderLayer:
    """Attention and MLP of one layer."""

    def __init__(self, config: ModelConfig, index: int, source: ParameterSource, kernels: Kernels) -> None:
        prefix = f"model.layers.{index}"
        self._config = config
        self._index = index
        self._kernels = kernels
        self.input_norm = source.norm(f"{prefix}.input_layernorm.weight")
        attention = f"{prefix}.self_attn"
        self.qkv = source.linear(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        self.o = source.linear(f"{attention}.o_proj")
        self.post_norm = source.norm(f"{prefix}.post_attention_layernorm.weight")
        self.gate_up = source.linear(f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj")
        self.down = source.linear(f"{prefix}.mlp.down_proj")

    def __call__(self, x: paddle.Tensor, cache: KvCache, layout: BatchLayout) -> paddle.Tensor:
        """float32 [T, H] -> float32 [T, H]; writes this step's keys and values into the cache."""
        x = x + self._attention(self.input_norm(x), cache, layout)
        return x + self.down(self._kernels.silu_mul(self.gate_up(self.post_norm(x))))

    def _attention(self, x: paddle.Tensor, cache: KvCache, layout: BatchLayout) -> paddle.Tensor:
        config, kernels = self._config, self._kernels
        attention = kernels.paged_attention
        num_tokens = x.shape[0]
        query, key, value = paddle.split(self.qkv(x), [config.q_size, config.kv_size, config.kv_size], axis=-1)
        query = query.reshape([num_tokens, config.num_heads, config.head_dim])
        key = key.reshape([num_tokens, config.num_kv_heads, config.head_dim])
        value = value.reshape([num_tokens, config.num_kv_heads, config.head_dim])
        key = kernels.rotary(key, layout.cos, layout.sin)
        attention.kv_write(cache, self._index, key, value, layout.slots)
        return self.o(attention.attend(kernels.rotary(query, layout.cos, layout.sin), cache, self._index, layout))

    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        return self.qkv, self.o, self.gate_up, self.down

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
        self._kernels = kernels
        self.fused = fuse(config, self.layers, kernels)
        if self.fused is not None:
            self.layers = []  # their weights live in the fused operator now
        progress(1.0)

    def make_cache(
        self, num_blocks: int, block_tokens: int, dtype: KvDtype = "float32", static: StaticScales | None = None
    ) -> KvCache:
        """A paged cache for this model, in the layout of the operators that were chosen.

        Args:
            static: scales for ``int8``; without them each token and head finds its own.
        """
        config = self.config
        make = self._kernels.paged_attention.make_cache
        sizes = (config.num_layers, num_blocks, block_tokens, config.num_kv_heads, config.head_dim)
        cache: KvCache = make(*sizes, dtype, static)
        return cache

    def hidden(self, ids: paddle.Tensor, cache: KvCache, layout: BatchLayout) -> paddle.Tensor:
        """int64 [T] -> float32 [T, H], before the final norm."""
        x = self.embedding(ids)
        if self.fused is not None:
            return self.fused(x, cache, layout)
        for layer in self.layers:
            x = layer(x, cache, layout)
        return x

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """float32 [S, H] of the rows that are sampled -> float32 [S, vocab]."""
        return self.head(self.norm(hidden))

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of parameters in memory, by dtype."""
        total: dict[str, int] = {}
        parts: list[Any] = [self.embedding, self.norm, self.head]
        parts += [self.fused] if self.fused is not None else []
        for layer in self.layers:
            parts += layer.parts()
        for part in parts:
            for dtype, count in part.weight_bytes().items():
                total[dtype] = total.get(dtype, 0) + count
        return total


def fuse(config: ModelConfig, layers: list[DecoderLayer], kernels: Kernels) -> Any:
    """All layers as one operator, where there is one and every linear layer is of the kind it takes; else ``None``."""
    if kernels.fused_decoder is None or not layers:
        return None
    if not all(isinstance(linear, NativeInt8Linear) for layer in layers for linear in layer.linears()):
        return None
    sizes = (config.hidden_size, config.intermediate_size, config.num_heads, config.num_kv_heads, config.head_dim)
    fused = kernels.fused_decoder(*sizes, config.rms_norm_eps)
    for layer in layers:
        fused.add(layer.input_norm.weight.numpy(), layer.post_norm.weight.numpy(), layer.linears())
    return fused
