"""PaddleNLP directories: the same tensors come out as went into the Hugging Face one."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints import DenseTensor, Int8Weight, open_checkpoint
from paddle_ds.config.tensors import model_specs

CONTAINERS = ["pdparams", "safetensors"]
LLM_INT8 = {"weight_quantize_algo": "llm.int8"}
QUERY = "qwen2.layers.0.self_attn.q_proj"


def assert_same(directory: Path, tensors: makers.Tensors, dtype: str) -> None:
    """Every canonical tensor of ``directory`` is the float32 one after a trip through ``dtype``."""
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.format == "paddlenlp"
        assert list(checkpoint.stored()) == [spec.name for spec in model_specs(checkpoint.config)]
        for spec in model_specs(checkpoint.config):
            weight = checkpoint.read(spec)
            assert isinstance(weight, DenseTensor)
            assert (weight.dtype, weight.shape) == (dtype, spec.shape)
            assert checkpoint.stored()[spec.name].dtype == dtype
            found = weight.to_float32()
            assert found.flags.c_contiguous
            expected = makers.from_dtype(makers.to_dtype(tensors[spec.name], dtype), dtype)
            np.testing.assert_array_equal(found, expected)
            checkpoint.release(spec)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("num_shards", [1, 3], ids=["one file", "three shards"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", [makers.QWEN2, makers.LLAMA], ids=["qwen2", "llama"])
def test_reads_every_tensor(
    tmp_path: Path, architecture: dict[str, Any], is_tied: bool, dtype: str, num_shards: int, container: str
) -> None:
    config = makers.config_json(architecture, tie_word_embeddings=is_tied, dtype=dtype)
    tensors = makers.random_tensors(config)
    stored = makers.paddlenlp_tensors(config, tensors, dtype)
    assert_same(makers.write_paddlenlp(tmp_path, config, stored, container, num_shards), tensors, dtype)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("scale_dtype", ["float32", "bfloat16", "float16"])
def test_reads_int8(tmp_path: Path, scale_dtype: str, container: str) -> None:
    config = makers.config_json(quantization_config=LLM_INT8)
    tensors = makers.random_tensors(config)
    stored = makers.paddlenlp_tensors(config, tensors, scale_dtype, is_int8=True)
    with open_checkpoint(makers.write_paddlenlp(tmp_path, config, stored, container)) as checkpoint:
        assert checkpoint.ignored() == frozenset()
        for spec in model_specs(checkpoint.config):
            weight = checkpoint.read(spec)
            if makers.is_linear(spec.name):
                assert isinstance(weight, Int8Weight)
                integers, scales = makers.quantized(tensors[spec.name])
                np.testing.assert_array_equal(weight.values, integers)
                expected = makers.from_dtype(makers.to_dtype(scales, scale_dtype), scale_dtype)
                np.testing.assert_array_equal(weight.scales, expected)
                assert checkpoint.stored()[spec.name].dtype == "int8"
            else:
                assert isinstance(weight, DenseTensor)
                assert weight.shape == spec.shape


@pytest.mark.parametrize("name", ["deepseek_r1_distill_int8.pdparams", "weights.pdparams"])
def test_a_file_of_any_name(tmp_path: Path, name: str) -> None:
    config = makers.config_json()
    tensors = makers.random_tensors(config)
    makers.write_paddlenlp(tmp_path, config, makers.paddlenlp_tensors(config, tensors))
    (tmp_path / "model_state.pdparams").rename(tmp_path / name)
    assert_same(tmp_path, tensors, "float32")
    assert_same(tmp_path / name, tensors, "float32")


def test_a_square_linear_is_transposed_too(tmp_path: Path) -> None:
    config = makers.config_json()
    tensors = makers.random_tensors(config)
    with open_checkpoint(makers.write_paddlenlp(tmp_path, config, makers.paddlenlp_tensors(config, tensors))) as checkpoint:
        spec = next(spec for spec in model_specs(checkpoint.config) if spec.name.endswith("0.self_attn.q_proj.weight"))
        assert spec.shape == (24, 24)
        np.testing.assert_array_equal(checkpoint.read(spec).to_float32(), tensors[spec.name])


def test_a_converted_hugging_face_directory_is_read_as_safetensors(tmp_path: Path) -> None:
    # PaddleNLP's convert_from_torch leaves a model_state.pdparams beside the original
    config = makers.config_json()
    tensors = makers.random_tensors(config)
    makers.write_hf(tmp_path, config, tensors)
    makers.write_paddlenlp(tmp_path, config, makers.paddlenlp_tensors(config, makers.random_tensors(config, seed=1)))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "huggingface"


def test_paddlenlps_linear_rope_scaling_is_understood_and_others_are_refused(tmp_path: Path) -> None:
    config = makers.config_json(makers.LLAMA, rope_scaling_type="linear", rope_scaling_factor=4.0)
    stored = makers.paddlenlp_tensors(config, makers.random_tensors(config))
    with open_checkpoint(makers.write_paddlenlp(tmp_path, config, stored)) as checkpoint:
        assert (checkpoint.config.rope_scaling.rope_type, checkpoint.config.rope_scaling.factor) == ("linear", 4.0)
    makers.write_json(tmp_path / "config.json", {**config, "rope_scaling_type": "dynamic_ntk"})
    with pytest.raises(errors.UnsupportedError, match="dynamic_ntk"):
        open_checkpoint(tmp_path)


Edit = Callable[[dict[str, Any], makers.Tensors], object]

DAMAGES: dict[str, tuple[Edit, type[Exception], str]] = {
    "missing linear": (
        lambda c, t: t.pop(f"{QUERY}.weight"),
        errors.MissingTensorError,
        rf"'{QUERY}\.weight' is missing; expected \[24, 24\] of linear 'model\.layers\.0",
    ),
    "extra tensor": (lambda c, t: t.update({"qwen2.x": np.ones(1, "f4")}), errors.UnexpectedTensorError, r"'qwen2\.x'"),
    "linear the Hugging Face way round": (
        lambda c, t: t.update({"qwen2.layers.0.mlp.up_proj.weight": np.ones((40, 24), np.float32)}),
        errors.TensorShapeError,
        r"found \[40, 24\]; expected \[24, 40\]",
    ),
    "untied head the Hugging Face way round": (
        lambda c, t: t.update({"lm_head.weight": np.ones((56, 24), np.float32)}),
        errors.TensorShapeError,
        r"'lm_head\.weight': found \[56, 24\]; expected \[24, 56\]",
    ),
    "int64": (
        lambda c, t: t.update({f"{QUERY}.weight": np.ones((24, 24), np.int64)}),
        errors.TensorDtypeError,
        "found int64; expected one of float32",
    ),
    "more layers in config.json": (
        lambda c, t: c.update(num_hidden_layers=4),
        errors.ConfigMismatchError,
        "num_hidden_layers is 4; the files hold 2",
    ),
    "weight_only_int8": (
        lambda c, t: c.update(quantization_config={"weight_quantize_algo": "weight_only_int8"}),
        errors.UnsupportedError,
        r"'weight_only_int8' stores weights permuted.*have: 'llm\.int8'\. Export the model again",
    ),
    "int8 without an algorithm": (
        lambda c, t: t.update({f"{QUERY}.quant_weight": t.pop(f"{QUERY}.weight").astype(np.int8)}),
        errors.ConfigMismatchError,
        "names no weight_quantize_algo",
    ),
    "int8 without scales": (
        lambda c, t: (
            c.update(quantization_config=LLM_INT8),
            t.update({f"{QUERY}.quant_weight": t.pop(f"{QUERY}.weight").astype(np.int8)}),
        ),
        errors.MissingTensorError,
        rf"'{QUERY}\.quant_scale' is missing",
    ),
    "fused attention": (
        lambda c, t: t.update({"qwen2.layers.0.self_attn.qkv_proj.weight": np.ones((24, 48), np.float32)}),
        errors.UnsupportedError,
        "fused; save the model again with fuse_attention_qkv=False",
    ),
    "unknown quantisation": (
        lambda c, t: c.update(quantization_config={"quant_type": "a8w8"}),
        errors.UnsupportedError,
        "'quant_type': 'a8w8'",
    ),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("edit", "error", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(tmp_path: Path, edit: Edit, error: type[Exception], message: str, container: str) -> None:
    config = makers.config_json()
    stored = makers.paddlenlp_tensors(config, makers.random_tensors(config))
    edit(config, stored)
    makers.write_paddlenlp(tmp_path, config, stored, container)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nan_is_refused_when_read(tmp_path: Path, dtype: str, container: str) -> None:
    config = makers.config_json()
    tensors = makers.random_tensors(config)
    tensors["model.norm.weight"][3] = np.nan
    stored = makers.paddlenlp_tensors(config, tensors, dtype)
    with open_checkpoint(makers.write_paddlenlp(tmp_path, config, stored, container)) as checkpoint:
        spec = next(spec for spec in model_specs(checkpoint.config) if spec.name == "model.norm.weight")
        with pytest.raises(errors.TensorNotFiniteError, match=r"'qwen2\.norm\.weight': found 1"):
            checkpoint.read(spec)


def test_names_of_hugging_face_in_a_pickle_are_refused(tmp_path: Path) -> None:
    # nothing says which way round these linears are
    config = makers.config_json()
    makers.write_paddlenlp(tmp_path, config, makers.random_tensors(config))
    with pytest.raises(errors.UnknownFormatError, match="fit none of the formats"):
        open_checkpoint(tmp_path)


def test_a_malicious_directory_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return print, ("executed",)

    makers.write_json(tmp_path / "config.json", makers.config_json())
    (tmp_path / "model_state.pdparams").write_bytes(pickle.dumps({"qwen2.norm.weight": Payload()}, protocol=4))
    with pytest.raises(errors.UnsafePickleError, match=r"builtins\.print"):
        open_checkpoint(tmp_path)


SAVE_WITH_PADDLENLP = """
import json, sys
import numpy as np, paddle
from paddlenlp.transformers import Qwen2Config, Qwen2ForCausalLM, LlamaConfig, LlamaForCausalLM
import paddlenlp.quantization.quantization_utils as QU
from paddle.nn.quant import weight_quantize

out = sys.argv[1]
small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=80, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)

def save(name, model, **options):
    model.save_pretrained(f"{out}/{name}", **options)
    state = {k: v.astype("float32").numpy() for k, v in model.state_dict().items()}
    np.savez(f"{out}/{name}.npz", **state)

paddle.set_default_dtype("float32")
qwen2 = Qwen2ForCausalLM(Qwen2Config(**small))
save("pdparams", qwen2)
save("safetensors", qwen2, safe_serialization=True)
save("pdparams-sharded", qwen2, max_shard_size="20KB")
save("safetensors-sharded", qwen2, safe_serialization=True, max_shard_size="20KB")
save("tied", LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=True)))
paddle.set_default_dtype("bfloat16")
half = LlamaForCausalLM(LlamaConfig(**small, dtype="bfloat16"))
save("bf16-pdparams", half)
save("bf16-safetensors", half, safe_serialization=True)
"""

EXPORT_INT8 = """
from paddlenlp.quantization.quantization_config import QuantizationConfig
paddle.set_default_dtype("float32")
QU.weight_quantize = lambda w, algo: weight_quantize(w, algo, arch=80)  # PaddleNLP asks the GPU, and there is none
int8 = Qwen2ForCausalLM.from_pretrained(f"{out}/pdparams", dtype="float16",
                                        quantization_config=QuantizationConfig(weight_quantize_algo="llm.int8"))
save("int8", int8)
"""


def test_reads_what_paddlenlp_itself_saves(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SAVE_WITH_PADDLENLP + EXPORT_INT8, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    saved = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert len(saved) == 8
    for name in saved:
        expected = np.load(tmp_path / f"{name}.npz")
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert checkpoint.format == "paddlenlp"
            for spec in model_specs(checkpoint.config):
                weight = checkpoint.read(spec)
                raw = spec.name.replace("model.", f"{checkpoint.config.architecture[:5].lower()}.", 1)
                if isinstance(weight, Int8Weight):
                    module = raw.removesuffix(".weight")
                    np.testing.assert_array_equal(weight.values, expected[f"{module}.quant_weight"])
                    np.testing.assert_array_equal(weight.scales, expected[f"{module}.quant_scale"])
                    float_weight = np.load(tmp_path / "pdparams.npz")[raw].T
                    np.testing.assert_allclose(weight.to_float32(), float_weight, atol=np.abs(float_weight).max() / 200)
                    continue
                values = expected[raw]
                is_linear = makers.is_linear(spec.name) or spec.name == "lm_head.weight"
                np.testing.assert_array_equal(weight.to_float32(), values.T if is_linear else values)
            assert (name == "int8") == any(line.dtype == "int8" for line in checkpoint.stored().values())
    assert json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"] == LLM_INT8
