"""Reading a ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddle_ds.config.model import ModelConfig, RopeScaling
from paddle_ds.errors import CheckpointNotFound, ConfigMismatchError, UnknownArchitectureError, UnsupportedError

#: DeepSeek-R1-Distill-Qwen-1.5B
R1_QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151646,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "max_position_embeddings": 131072,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 100,
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def read(base: dict[str, Any] = LLAMA, **changes: Any) -> ModelConfig:
    return ModelConfig.from_dict(base | changes)


def test_reads_the_distilled_qwen() -> None:
    config = read(R1_QWEN)
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (1536, 8960, 28)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (12, 2, 128)
    assert (config.q_size, config.kv_size) == (1536, 256)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.tie_word_embeddings) == (True, False, False, False)
    assert (config.bos_token_id, config.eos_token_ids) == (151646, (151643,))
    assert (config.rope_theta, config.rope_scaling, config.stored_dtype) == (10000.0, RopeScaling(), "bfloat16")


def test_defaults_are_those_of_llama() -> None:
    config = read()
    assert (config.num_kv_heads, config.head_dim, config.max_position_embeddings) == (4, 16, 2048)
    assert (config.rms_norm_eps, config.rope_theta, config.stored_dtype) == (1e-6, 10000.0, "float32")
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (False, False, False)
    assert (config.bos_token_id, config.eos_token_ids, config.quantization) == (None, (), None)


def test_llamas_attention_bias_covers_the_output_projection() -> None:
    config = read(attention_bias=True, mlp_bias=True)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)


def test_a_head_size_of_its_own_is_kept() -> None:
    assert read(hidden_size=50, head_dim=20).head_dim == 20


def test_null_is_as_good_as_absent() -> None:
    names = ("num_key_value_heads", "head_dim", "rope_scaling", "rope_theta", "attention_bias", "eos_token_id")
    assert read(**dict.fromkeys(names)) == read()


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size"])
def test_a_missing_field_is_named(name: str) -> None:
    raw = {key: value for key, value in LLAMA.items() if key != name}
    with pytest.raises(ConfigMismatchError, match=f"x/config.json: field '{name}' is missing"):
        ModelConfig.from_dict(raw, "x/config.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("hidden_size", 0),
        ("vocab_size", -1),
        ("num_hidden_layers", [2]),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_theta", 10**400),
        ("rope_theta", -1),
        ("tie_word_embeddings", "false"),
        ("attention_bias", 1),
        ("mlp_bias", "no"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, True]),
        ("bos_token_id", 1.0),
        ("quantization_config", "int8"),
        ("rope_scaling", "yarn"),
        ("rope_parameters", [1]),
    ],
)
def test_a_value_of_the_wrong_type_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(ConfigMismatchError, match=f"field '{name}' is "):
        read(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
        ({"hidden_size": 66}, "hidden_size=66 is not a multiple of num_attention_heads=4"),
        ({"head_dim": 15}, "head_dim=15 is odd"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigMismatchError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": [], "model_type": "mamba"}, "model_type 'mamba'"),
        ({"architectures": None}, "model_type None"),
        ({"architectures": [["Qwen2ForCausalLM"]]}, "Qwen2ForCausalLM"),
        ({"architectures": [], "model_type": ["llama"]}, "model_type"),
    ],
)
def test_another_architecture_is_refused_with_those_we_have(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=f"{found}.*; have: Qwen2ForCausalLM, LlamaForCausalLM"):
        read(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": "LlamaForCausalLM"},
        {"architectures": [], "model_type": "llama"},
        {"architectures": ["X", "LlamaForCausalLM"]},
    ],
)
def test_architectures_are_found_however_they_are_written(changes: dict[str, Any]) -> None:
    assert read(**changes).architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is true"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'; have: silu"),
        ({"alibi": True}, "alibi is true"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic'; have: default, linear, llama3, yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "betta": 1}}, "unknown keys betta"),
    ],
)
def test_features_we_do_not_have_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4}}, RopeScaling("linear", 4.0)),
        ({"rope_scaling": {"rope_type": "default"}}, RopeScaling()),
        ({"rope_scaling": LLAMA3_ROPE}, RopeScaling("llama3", 8.0, 8192)),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            RopeScaling("yarn", 4.0, 32768),
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 40,
                    "mscale": 1.0,
                    "mscale_all_dim": 0,
                    "truncate": False,
                    "beta_fast": None,
                }
            },
            RopeScaling("yarn", 40.0, mscale=1.0, mscale_all_dim=0.0, truncate=False),
        ),
        ({"rope_scaling_type": "linear", "rope_scaling_factor": 2.0}, RopeScaling("linear", 2.0)),
        (
            {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 500000.0, "partial_rotary_factor": 1.0}},
            RopeScaling("llama3", 8.0, 8192),
        ),
    ],
    ids=["linear", "default", "llama3", "yarn", "yarn-all", "paddlenlp", "transformers-5"],
)
def test_rotary_variants(changes: dict[str, Any], expected: RopeScaling) -> None:
    assert read(**changes).rope_scaling == expected


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "linear"}, "needs 'factor'"),
        ({"type": "linear", "factor": None}, "needs 'factor'"),
        ({"type": "linear", "factor": "4"}, "'factor' is '4'"),
        ({"type": "linear", "factor": 0}, "'factor' is 0"),
        ({"type": "yarn", "factor": 4, "original_max_position_embeddings": -1}, "'original_max_position_embeddings' is -1"),
        ({"type": "yarn", "factor": 4, "truncate": "no"}, "'truncate' is 'no'"),
        ({"type": "yarn", "factor": 4, "mscale": "x"}, "'mscale' is 'x'"),
        (LLAMA3_ROPE | {"low_freq_factor": 4.0}, "low_freq_factor=4.0, not below high_freq_factor=4.0"),
    ],
)
def test_wrong_rotary_values_are_named(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigMismatchError, match=message):
        read(rope_scaling=scaling)


def test_yarn_needs_frequencies_that_differ() -> None:
    with pytest.raises(ConfigMismatchError, match="rope_theta is 1"):
        read(rope_theta=1.0, rope_scaling={"type": "yarn", "factor": 4})


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500000.0},
        {"rope_parameters": {"rope_theta": 500000.0}},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4},
    ],
    ids=["transformers-4", "transformers-5", "both"],
)
def test_the_rotary_base_is_found_in_both_places(changes: dict[str, Any]) -> None:
    assert read(**changes).rope_theta == 500000.0


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_the_stored_type_is_found_under_both_names(name: str) -> None:
    assert read(**{name: "float16"}).stored_dtype == "float16"


@pytest.mark.parametrize(("value", "expected"), [(2, (2,)), ([2, 3], (2, 3)), ([], ()), (None, ())])
def test_end_ids_are_one_or_many(value: Any, expected: tuple[int, ...]) -> None:
    assert read(eos_token_id=value).eos_token_ids == expected


def test_the_quantisation_is_kept_as_found() -> None:
    assert read(quantization_config={"quant_method": "x"}).quantization == {"quant_method": "x"}
    assert read(quantization_config={}).quantization is None


def test_a_directory_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"needs a config\.json"):
        ModelConfig.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "cannot be read"),
        (b"[]", "expected a JSON object, found list"),
        (b"[" * 100_000, "not JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
    ids=["cut off", "not utf-8", "a list", "deep", "a long number"],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigMismatchError, match=message):
        ModelConfig.from_dir(tmp_path)


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": 0}), encoding="utf-8")
    with pytest.raises(ConfigMismatchError, match=f"{tmp_path}/config.json: field 'vocab_size'"):
        ModelConfig.from_dir(tmp_path)


def test_every_golden_checkpoint_parses(golden_dir: Path) -> None:
    directories = sorted((golden_dir / "hf").iterdir())
    assert directories
    assert {ModelConfig.from_dir(path).architecture for path in directories} == {"Qwen2ForCausalLM", "LlamaForCausalLM"}
