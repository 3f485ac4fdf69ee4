"""Which tensors a ``ModelConfig`` implies: the one list that readers check files against, and that plans count bytes from.

Names are Hugging Face's (``model.layers.0.self_attn.q_proj.weight``), linear weights are ``[out, in]``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator

from paddle_ds.config.model import ModelConfig


class Role(enum.Enum):
    """What a tensor is to the model; a quantisation recipe decides by it."""

    EMBEDDING = "embedding"
    LINEAR = "linear"
    HEAD = "head"
    NORM = "norm"
    BIAS = "bias"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor the model needs."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def num_elements(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count


def linear_spec(prefix: str, out_features: int, in_features: int, bias: bool) -> Iterator[TensorSpec]:
    """Weight and, where there is one, bias of the linear layer called ``prefix``."""
    yield TensorSpec(f"{prefix}.weight", (out_features, in_features), Role.LINEAR)
    if bias:
        yield TensorSpec(f"{prefix}.bias", (out_features,), Role.BIAS)


def layer_specs(config: ModelConfig, index: int) -> Iterator[TensorSpec]:
    """Tensors of decoder layer ``index``."""
    prefix = f"model.layers.{index}"
    hidden, inner = config.hidden_size, config.intermediate_size
    yield TensorSpec(f"{prefix}.input_layernorm.weight", (hidden,), Role.NORM)
    yield from linear_spec(f"{prefix}.self_attn.q_proj", config.q_size, hidden, config.qkv_bias)
    yield from linear_spec(f"{prefix}.self_attn.k_proj", config.kv_size, hidden, config.qkv_bias)
    yield from linear_spec(f"{prefix}.self_attn.v_proj", config.kv_size, hidden, config.qkv_bias)
    yield from linear_spec(f"{prefix}.self_attn.o_proj", hidden, config.q_size, config.o_bias)
    yield TensorSpec(f"{prefix}.post_attention_layernorm.weight", (hidden,), Role.NORM)
    yield from linear_spec(f"{prefix}.mlp.gate_proj", inner, hidden, config.mlp_bias)
    yield from linear_spec(f"{prefix}.mlp.up_proj", inner, hidden, config.mlp_bias)
    yield from linear_spec(f"{prefix}.mlp.down_proj", hidden, inner, config.mlp_bias)


def model_specs(config: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor of the model, in the order of a forward pass. A tied head has no tensor of its own."""
    yield TensorSpec("model.embed_tokens.weight", (config.vocab_size, config.hidden_size), Role.EMBEDDING)
    for index in range(config.num_layers):
        yield from layer_specs(config, index)
    yield TensorSpec("model.norm.weight", (config.hidden_size,), Role.NORM)
    if not config.tie_word_embeddings:
        yield TensorSpec("lm_head.weight", (config.vocab_size, config.hidden_size), Role.HEAD)
