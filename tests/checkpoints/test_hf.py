"""Hugging Face directories: every tensor as stored, every damage by name, before anything is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints import DenseTensor, open_checkpoint
from paddle_ds.config.tensors import TensorSpec, model_specs

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


def spec_of(checkpoint: Any, name: str) -> TensorSpec:
    return next(spec for spec in model_specs(checkpoint.config) if spec.name == name)


@pytest.mark.parametrize("num_shards", [1, 3], ids=["one file", "three shards"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("architecture", [makers.QWEN2, makers.LLAMA], ids=["qwen2", "llama"])
def test_reads_every_tensor(tmp_path: Path, architecture: dict[str, Any], is_tied: bool, dtype: str, num_shards: int) -> None:
    config = makers.config_json(architecture, tie_word_embeddings=is_tied)
    tensors = makers.random_tensors(config)
    makers.write_hf(tmp_path, config, tensors, dtype, num_shards)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "huggingface"
        assert checkpoint.ignored() == frozenset()
        assert list(checkpoint.stored()) == [spec.name for spec in model_specs(checkpoint.config)]
        for spec in model_specs(checkpoint.config):
            weight = checkpoint.read(spec)
            assert isinstance(weight, DenseTensor)
            assert weight.dtype == dtype
            assert weight.shape == spec.shape
            stored = checkpoint.stored()[spec.name]
            assert (stored.shape, stored.dtype) == (spec.shape, dtype)
            assert stored.nbytes == weight.values.nbytes
            expected = makers.from_dtype(makers.to_dtype(tensors[spec.name], dtype), dtype)
            np.testing.assert_array_equal(weight.to_float32(), expected)
            checkpoint.release(spec)
            np.testing.assert_array_equal(weight.to_float32(), expected)


def test_float32_is_not_copied_and_narrower_types_are_views(tmp_path: Path) -> None:
    config = makers.config_json()
    makers.write_hf(tmp_path, config, makers.random_tensors(config))
    with open_checkpoint(tmp_path) as checkpoint:
        weight = checkpoint.read(spec_of(checkpoint, Q_PROJ))
        assert isinstance(weight, DenseTensor)
        assert weight.to_float32() is weight.values


def test_goldens_open(golden_dir: Path) -> None:
    cases = sorted((golden_dir / "hf").iterdir())
    assert len(cases) >= 12
    for case in cases:
        with open_checkpoint(case) as checkpoint:
            for spec in model_specs(checkpoint.config):
                assert checkpoint.read(spec).shape == spec.shape


def test_a_file_can_be_named(tmp_path: Path) -> None:
    config = makers.config_json()
    makers.write_hf(tmp_path, config, makers.random_tensors(config))
    (tmp_path / "model.safetensors").rename(tmp_path / "my.safetensors")
    for path in (tmp_path / "my.safetensors", tmp_path):
        with open_checkpoint(path) as checkpoint:
            assert len(checkpoint.stored()) == 27


def test_shards_without_an_index_are_read_together(tmp_path: Path) -> None:
    config = makers.config_json()
    makers.write_hf(tmp_path, config, makers.random_tensors(config), num_shards=3)
    (tmp_path / "model.safetensors.index.json").unlink()
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.stored()) == 27
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(errors.CheckpointNotFound, match="2 of 3 shards; missing number 2"):
        open_checkpoint(tmp_path)


def test_a_tied_head_stored_once_more_is_ignored(tmp_path: Path) -> None:
    config = makers.config_json(tie_word_embeddings=True)
    tensors = makers.random_tensors(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    with open_checkpoint(makers.write_hf(tmp_path, config, tensors)) as checkpoint:
        assert "lm_head.weight" not in checkpoint.stored()


# Each damage changes a healthy (config, tensors) pair in place, or returns what to do with the directory afterwards.
Damage = Callable[[dict[str, Any], makers.Tensors], Callable[[Path], None] | None]


def remove(name: str) -> Damage:
    def damage(config: dict[str, Any], tensors: makers.Tensors) -> None:
        del tensors[name]

    return damage


def add(name: str, values: np.ndarray) -> Damage:
    def damage(config: dict[str, Any], tensors: makers.Tensors) -> None:
        tensors[name] = values

    return damage


def change(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(config: dict[str, Any], tensors: makers.Tensors) -> None:
        tensors[name] = how(tensors[name])

    return damage


def configure(**changes: Any) -> Damage:
    def damage(config: dict[str, Any], tensors: makers.Tensors) -> None:
        config.update(changes)

    return damage


def afterwards(action: Callable[[Path], None]) -> Damage:
    return lambda config, tensors: action


def cut(num_bytes: int) -> Damage:
    def action(directory: Path) -> None:
        file = directory / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-num_bytes])

    return afterwards(action)


def write(name: str, text: str) -> Damage:
    return afterwards(lambda directory: (directory / name).write_text(text) and None)


DAMAGES: dict[str, tuple[Damage, type[Exception], str]] = {
    "missing linear": (remove(Q_PROJ), errors.MissingTensorError, rf"'{Q_PROJ}' is missing; expected \[24, 24\]"),
    "missing bias": (remove(Q_PROJ.replace("weight", "bias")), errors.MissingTensorError, "q_proj.bias"),
    "missing untied head": (remove("lm_head.weight"), errors.MissingTensorError, "tie_word_embeddings.*false"),
    "extra tensor": (add("model.extra", np.ones(2, np.float32)), errors.UnexpectedTensorError, r"'model\.extra' \[2\]"),
    "extra bias": (
        add("model.layers.0.self_attn.o_proj.bias", np.ones(24, np.float32)),
        errors.UnexpectedTensorError,
        "o_proj.bias",
    ),
    "tied head of another shape": (
        lambda config, tensors: (
            config.update(tie_word_embeddings=True) or tensors.update({"lm_head.weight": np.ones((3, 24), np.float32)})
        ),
        errors.TensorShapeError,
        r"'lm_head\.weight': found \[3, 24\]; expected \[56, 24\]",
    ),
    "transposed linear": (
        change("model.layers.0.mlp.up_proj.weight", lambda v: v.T.copy()),
        errors.TensorShapeError,
        r"up_proj\.weight': found \[24, 40\]; expected \[40, 24\]",
    ),
    "norm of another length": (change(NORM, lambda v: v[:-1]), errors.TensorShapeError, r"found \[23\]; expected \[24\]"),
    "int8 without a scheme": (change(Q_PROJ, lambda v: v.astype(np.int8)), errors.TensorDtypeError, "found int8"),
    "uint16": (change(Q_PROJ, lambda v: v.astype(np.uint16)), errors.TensorDtypeError, "found uint16"),
    "float64": (change(NORM, lambda v: v.astype(np.float64)), errors.TensorDtypeError, "found float64; expected one of float32"),
    "fewer layers than config.json": (
        configure(num_hidden_layers=3),
        errors.ConfigMismatchError,
        "num_hidden_layers is 3; the files hold 2",
    ),
    "more layers than config.json": (configure(num_hidden_layers=1), errors.ConfigMismatchError, "is 1; the files hold 2"),
    "another hidden size": (configure(hidden_size=32), errors.TensorShapeError, r"found \[56, 24\]; expected \[56, 32\]"),
    "another vocabulary": (configure(vocab_size=57), errors.TensorShapeError, r"found \[56, 24\]; expected \[57, 24\]"),
    "another number of kv heads": (configure(num_key_value_heads=4), errors.TensorShapeError, "k_proj"),
    "unknown architecture": (
        configure(architectures=["MambaForCausalLM"]),
        errors.UnknownArchitectureError,
        "MambaForCausalLM; have: Qwen2ForCausalLM, LlamaForCausalLM",
    ),
    "unknown quantization": (
        configure(quantization_config={"quant_method": "bitsandbytes"}),
        errors.UnsupportedError,
        "'bitsandbytes'; have: compressed-tensors, gptq, awq",
    ),
    "data cut off": (cut(1), errors.TruncatedFileError, r"model\.safetensors"),
    "header cut off": (
        afterwards(lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:64]) and None),
        errors.TruncatedFileError,
        "header",
    ),
    "no config.json": (afterwards(lambda d: (d / "config.json").unlink()), errors.CheckpointNotFound, "config.json"),
    "config.json not JSON": (write("config.json", "{"), errors.ConfigMismatchError, "not JSON"),
    "no weights": (afterwards(lambda d: (d / "model.safetensors").unlink()), errors.UnknownFormatError, "no weights"),
    "names of another format": (
        lambda config, tensors: [tensors.update({f"transformer.{n}": tensors.pop(n)}) for n in list(tensors)] and None,
        errors.UnknownFormatError,
        "'transformer.model.embed_tokens.weight'",
    ),
}


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(tmp_path: Path, damage: Damage, error: type[Exception], message: str) -> None:
    config = makers.config_json()
    tensors = makers.random_tensors(config)
    action = damage(config, tensors)
    makers.write_hf(tmp_path, config, tensors)
    if action is not None:
        action(tmp_path)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_values_that_are_not_finite_are_refused_when_read(tmp_path: Path, dtype: str, bad: float) -> None:
    config = makers.config_json()
    tensors = makers.random_tensors(config)
    tensors[Q_PROJ][3, 5] = bad
    tensors[Q_PROJ][0, 0] = bad
    with open_checkpoint(makers.write_hf(tmp_path, config, tensors, dtype)) as checkpoint:
        with pytest.raises(errors.TensorNotFiniteError, match=rf"'{Q_PROJ}': found 2 NaN or infinite of 576") as caught:
            checkpoint.read(spec_of(checkpoint, Q_PROJ))
        assert "model.safetensors" in str(caught.value)
        checkpoint.read(spec_of(checkpoint, NORM))


def index_of(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "model.safetensors.index.json").read_text())
    return content


def edit_index(edit: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def action(directory: Path) -> None:
        index = index_of(directory)
        edit(index["weight_map"])
        makers.write_json(directory / "model.safetensors.index.json", index)

    return action


def put_into_two_shards(directory: Path) -> None:
    second = directory / "model-00002-of-00003.safetensors"
    norm = np.ones(24, np.float32)
    second.write_bytes(makers.safetensors_bytes({"model.norm.weight": norm, Q_PROJ: np.ones((24, 24), np.float32)}))


INDEX_DAMAGES: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "shard missing": (
        lambda d: (d / "model-00002-of-00003.safetensors").unlink(),
        errors.CheckpointNotFound,
        "model-00002-of-00003.safetensors: no such file",
    ),
    "tensor not listed": (edit_index(lambda m: m.pop(Q_PROJ)), errors.UnexpectedTensorError, f"'{Q_PROJ}' is not listed"),
    "listed in another shard": (
        edit_index(lambda m: m.update({Q_PROJ: "model-00003-of-00003.safetensors"})),
        errors.MissingTensorError,
        f"'{Q_PROJ}' is absent.*it is in model-00001",
    ),
    "listed but nowhere": (
        edit_index(lambda m: m.update({"model.ghost": "model-00001-of-00003.safetensors"})),
        errors.MissingTensorError,
        "'model.ghost' is absent.*in no shard",
    ),
    "in two shards": (put_into_two_shards, errors.CorruptFileError, "is also in model-0000"),
    "shard outside the directory": (
        edit_index(lambda m: m.update({Q_PROJ: "../model-00001-of-00003.safetensors"})),
        errors.CorruptFileError,
        "plain name",
    ),
    "index not JSON": (
        lambda d: (d / "model.safetensors.index.json").write_text("]["),
        errors.CorruptFileError,
        "index.json: not JSON",
    ),
    "index without a map": (
        lambda d: (d / "model.safetensors.index.json").write_text("{}"),
        errors.CorruptFileError,
        "no 'weight_map'",
    ),
}


@pytest.mark.parametrize(("damage", "error", "message"), INDEX_DAMAGES.values(), ids=INDEX_DAMAGES.keys())
def test_index_damage_is_named(tmp_path: Path, damage: Callable[[Path], Any], error: type[Exception], message: str) -> None:
    config = makers.config_json()
    makers.write_hf(tmp_path, config, makers.random_tensors(config), num_shards=3)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path)


def test_a_wrong_path_is_not_taken_for_a_hub_name(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointNotFound, match="no such directory"):
        open_checkpoint(tmp_path / "nothing" / "here")
    with pytest.raises(errors.CheckpointNotFound, match="not a hub name"):
        open_checkpoint("just-a-name")
