"""Which tensors a config implies."""

from __future__ import annotations

import pytest

from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, TensorSpec, model_specs

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    hidden_size=12,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    vocab_size=50,
    max_position_embeddings=64,
)
R1_QWEN_1_5B = ModelConfig(
    architecture="Qwen2ForCausalLM",
    hidden_size=1536,
    intermediate_size=8960,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=131072,
    qkv_bias=True,
)


def specs_of(**changes: bool) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in model_specs(ModelConfig(**{**vars(CONFIG), **changes}))}


def test_shapes_are_out_by_in() -> None:
    prefix = "model.layers.1"
    shapes = {spec.name.removeprefix(prefix): spec.shape for spec in specs_of().values() if spec.name.startswith(prefix)}
    assert shapes == {
        ".input_layernorm.weight": (12,),
        ".self_attn.q_proj.weight": (24, 12),
        ".self_attn.k_proj.weight": (12, 12),
        ".self_attn.v_proj.weight": (12, 12),
        ".self_attn.o_proj.weight": (12, 24),
        ".post_attention_layernorm.weight": (12,),
        ".mlp.gate_proj.weight": (20, 12),
        ".mlp.up_proj.weight": (20, 12),
        ".mlp.down_proj.weight": (12, 20),
    }


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 3 + 2 * 9),
        ({"tie_word_embeddings": True}, 2 + 2 * 9),
        ({"qkv_bias": True}, 3 + 2 * 12),
        ({"qkv_bias": True, "o_bias": True, "mlp_bias": True}, 3 + 2 * 16),
    ],
    ids=["plain", "tied", "qkv biases", "all biases"],
)
def test_as_many_tensors_as_the_config_says(changes: dict[str, bool], count: int) -> None:
    assert len(specs_of(**changes)) == count


def test_biases_are_as_long_as_their_outputs() -> None:
    specs = specs_of(qkv_bias=True, o_bias=True, mlp_bias=True)
    biases = {name: spec for name, spec in specs.items() if name.endswith(".bias")}
    assert {spec.role for spec in biases.values()} == {Role.BIAS}
    assert all(spec.shape == specs[name.replace(".bias", ".weight")].shape[:1] for name, spec in biases.items())


def test_a_tied_head_has_no_tensor_of_its_own() -> None:
    assert specs_of()["lm_head.weight"].role is Role.HEAD
    assert "lm_head.weight" not in specs_of(tie_word_embeddings=True)


def test_the_distilled_qwen_has_its_published_number_of_parameters() -> None:
    assert sum(spec.num_elements for spec in model_specs(R1_QWEN_1_5B)) == 1_777_088_000
