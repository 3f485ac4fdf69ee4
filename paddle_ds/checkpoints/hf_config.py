"""A ``ModelConfig`` as the fields of a Hugging Face ``config.json``."""

from __future__ import annotations

import dataclasses
from typing import Any

from paddle_ds.config.model import ModelConfig

_MODEL_TYPES = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """What ``ModelConfig.from_dict`` reads back to an equal record, its quantisation left out."""
    eos = config.eos_token_ids
    fields: dict[str, Any] = {
        "architectures": [config.architecture],
        "model_type": _MODEL_TYPES[config.architecture],
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if len(eos) > 1 else next(iter(eos), None),
        "torch_dtype": config.stored_dtype,
    }
    if config.head_dim * config.num_heads != config.hidden_size:
        fields["head_dim"] = config.head_dim
    if config.architecture == "LlamaForCausalLM":
        fields |= {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    if config.rope_scaling.rope_type != "default":
        scaling = dataclasses.asdict(config.rope_scaling)
        fields["rope_scaling"] = {key: value for key, value in scaling.items() if value is not None}
    return fields
