"""GGUF: the model from the metadata, the tensors as stored, the rows of a Llama's q and k put back; nothing believed unread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_makers
import makers
import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints import DenseTensor, GroupedWeight, open_checkpoint
from paddle_ds.checkpoints.native import write_native
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, model_specs

SIZES = {"hidden_size": 64, "intermediate_size": 96}
QWEN2 = makers.config_json(**SIZES, rms_norm_eps=1e-5)
LLAMA = makers.config_json(makers.LLAMA, **SIZES, attention_bias=True, mlp_bias=True, rope_theta=5e5)
KINDS = {"qwen2": QWEN2, "llama": LLAMA, "llama tied": {**LLAMA, "tie_word_embeddings": True}}

Metadata = dict[str, tuple[str, Any]]
Stored = dict[str, tuple[str, np.ndarray]]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "cache"))


def parts(config: dict[str, Any] = LLAMA, dtype: str = "q8_0") -> tuple[Metadata, Stored]:
    return gguf_makers.gguf_metadata(config), gguf_makers.gguf_tensors(config, makers.random_tensors(config), dtype)


def read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for spec in model_specs(checkpoint.config):
            checkpoint.read(spec)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
def test_reads_every_tensor(tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    tensors = makers.random_tensors(config)
    with open_checkpoint(gguf_makers.write_gguf(tmp_path / "model.gguf", config, tensors, dtype)) as checkpoint:
        assert checkpoint.format == "gguf"
        assert checkpoint.ignored() == frozenset()
        quantised = {s.name for s in model_specs(checkpoint.config) if s.role in (Role.LINEAR, Role.HEAD) and dtype == "q8_0"}
        assert checkpoint.schemes() == {name.removesuffix(".weight"): "w8a16" for name in quantised}
        for spec in model_specs(checkpoint.config):
            found, line, values = checkpoint.read(spec), checkpoint.stored()[spec.name], tensors[spec.name]
            if values.ndim == 2 and dtype == "q8_0":
                values = gguf_makers.from_q8_0(gguf_makers.q8_0_blocks(values))
            elif values.ndim == 2:
                values = makers.from_dtype(makers.to_dtype(values, dtype), dtype)
            np.testing.assert_array_equal(found.to_float32(), values)
            if spec.name in quantised:
                assert isinstance(found, GroupedWeight)
                assert (found.bits, found.group_size) == (8, 32)
                assert found.zero_points is None
                assert found.group_index is None
                assert line.dtype == "int8"
                assert line.groups is not None
                assert (line.groups.size, line.groups.count) == (32, spec.shape[1] // 32)
                assert line.nbytes == spec.num_elements // 32 * 34
            else:
                assert isinstance(found, DenseTensor)
                assert found.dtype == line.dtype
            checkpoint.release(spec)


def test_version_2_is_read_and_data_may_be_aligned_otherwise(tmp_path: Path) -> None:
    metadata, stored = parts()
    metadata["general.alignment"] = ("u32", 128)
    (tmp_path / "model.gguf").write_bytes(gguf_makers.gguf_bytes(metadata, stored, version=2, alignment=128))
    read_all(tmp_path / "model.gguf")


GOLDEN = sorted(path.name for path in (Path(__file__).parents[1] / "golden" / "hf").iterdir())


@pytest.mark.parametrize("case", [case for case in GOLDEN if case != "qwen2-rope-yarn-attention-factor"])
def test_a_model_of_hugging_face_is_the_same_in_gguf(tmp_path: Path, case: str, golden_dir: Path) -> None:
    raw = json.loads((golden_dir / "hf" / case / "config.json").read_text(encoding="utf-8"))
    with open_checkpoint(golden_dir / "hf" / case) as source:
        tensors = {spec.name: source.read(spec).to_float32() for spec in model_specs(source.config)}
        path = gguf_makers.write_gguf(tmp_path / "model.gguf", raw, tensors)
        with open_checkpoint(path) as found:
            assert without_type(found.config) == without_type(source.config)
            assert without_type(ModelConfig.from_dict(found.raw_config())) == without_type(source.config)
            for spec in model_specs(source.config):
                np.testing.assert_array_equal(found.read(spec).to_float32(), tensors[spec.name])


def without_type(config: ModelConfig) -> dict[str, Any]:
    """All that a model computes with; matrices were widened to float32, and the base of the rotation is kept as one."""
    return {key: value for key, value in vars(config).items() if key != "stored_dtype"}


def test_the_native_format_keeps_every_weight(tmp_path: Path) -> None:
    path = gguf_makers.write_gguf(tmp_path / "model.gguf", LLAMA, makers.random_tensors(LLAMA), "q8_0")
    with open_checkpoint(path) as source:
        write_native(source, tmp_path / "native")
        with open_checkpoint(tmp_path / "native") as native:
            assert without_quantisation(native.config) == without_quantisation(source.config)
            for spec in model_specs(source.config):
                np.testing.assert_array_equal(native.read(spec).to_float32(), source.read(spec).to_float32())


def without_quantisation(config: ModelConfig) -> dict[str, Any]:
    return {key: value for key, value in vars(config).items() if key != "quantization"}


def test_reads_what_the_gguf_package_wrote(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package")
    tensors = makers.random_tensors(QWEN2)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    expected = {}
    for name, (_, values) in gguf_makers.gguf_tensors(QWEN2, tensors).items():
        if values.ndim == 1:
            writer.add_tensor(name, values)
            expected[name] = values
        else:
            blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            expected[name] = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert without_type(checkpoint.config) == without_type(ModelConfig.from_dict(QWEN2))
        specs = list(model_specs(checkpoint.config))
        assert len(specs) == len(expected)
        for spec, values in zip(specs, expected.values(), strict=True):
            np.testing.assert_array_equal(checkpoint.read(spec).to_float32(), values)


def test_a_directory_with_one_gguf_is_that_file(tmp_path: Path) -> None:
    tensors = makers.random_tensors(LLAMA)
    gguf_makers.write_gguf(tmp_path / "a.gguf", LLAMA, tensors)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "gguf"
    makers.write_json(tmp_path / "config.json", QWEN2)  # a repository's, say; the file knows better
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config.architecture == "LlamaForCausalLM"
    gguf_makers.write_gguf(tmp_path / "b.gguf", LLAMA, tensors)
    with pytest.raises(errors.UnknownFormatError, match=r"a.gguf, b.gguf; expected one"):
        open_checkpoint(tmp_path)
    makers.write_hf(tmp_path, LLAMA, tensors)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "huggingface"
    with open_checkpoint(tmp_path / "b.gguf") as checkpoint:
        assert checkpoint.format == "gguf"


def rope_scaled(freqs: np.ndarray) -> Callable[[Metadata, Stored], object]:
    return lambda _, stored: stored.update({"rope_freqs.weight": ("float32", freqs)})


def llama(**changes: tuple[str, Any]) -> Callable[[Metadata, Stored], object]:
    return lambda metadata, _: metadata.update({f"llama.{key.replace('__', '.')}": value for key, value in changes.items()})


def general(key: str, kind: str, value: Any) -> Callable[[Metadata, Stored], object]:
    return lambda metadata, _: metadata.update({key: (kind, value)})


EDITS: dict[str, tuple[Callable[[Metadata, Stored], object], type[Exception], str]] = {
    "another architecture": (
        general("general.architecture", "str", "gemma"),
        errors.UnknownArchitectureError,
        "general.architecture is 'gemma'; have: llama, qwen2",
    ),
    "an architecture that is a number": (
        general("general.architecture", "u32", 3),
        errors.UnknownArchitectureError,
        "general.architecture is 3",
    ),
    "an adapter": (general("general.type", "str", "adapter"), errors.UnsupportedError, "general.type is 'adapter'"),
    "a part": (general("split.count", "u16", 3), errors.UnsupportedError, "one of 3 parts"),
    "experts": (llama(expert_count=("u32", 8)), errors.UnsupportedError, "llama.expert_count' is 8; have: 0"),
    "window": (llama(attention__sliding_window=("u32", 4096)), errors.UnsupportedError, "sliding_window' is 4096"),
    "not causal": (llama(attention__causal=("bool", False)), errors.UnsupportedError, "causal' is False"),
    "half rotated": (llama(rope__dimension_count=("u32", 8)), errors.UnsupportedError, "dimension_count' is 8; have: 16"),
    "other values": (llama(attention__value_length=("u32", 8)), errors.UnsupportedError, "value_length' is 8; have: 16"),
    "long rope": (llama(rope__scaling__type=("str", "longrope")), errors.UnsupportedError, "rope.scaling.type is 'longrope'"),
    "linear without factor": (
        llama(rope__scaling__type=("str", "linear")),
        errors.ConfigMismatchError,
        "rope.scale_linear' is None; expected a number above 0",
    ),
    "no layers": (llama(block_count=("u32", 0)), errors.ConfigMismatchError, "block_count' is 0"),
    "layers that are text": (llama(block_count=("str", "2")), errors.ConfigMismatchError, "block_count' is '2'"),
    "three layers": (llama(block_count=("u32", 3)), errors.ConfigMismatchError, "block_count is 3; the file holds 2 blocks"),
    "heads that do not divide": (
        llama(attention__head_count_kv=("u32", 3)),
        errors.ConfigMismatchError,
        "not a multiple of num_key_value_heads=3",
    ),
    "heads that differ": (
        llama(attention__head_count_kv=("[i32]", [2, 1])),
        errors.UnsupportedError,
        "differs from layer to layer",
    ),
    "no epsilon": (
        lambda metadata, _: metadata.pop("llama.attention.layer_norm_rms_epsilon"),
        errors.ConfigMismatchError,
        "layer_norm_rms_epsilon' is None",
    ),
    "epsilon that is no number": (
        llama(attention__layer_norm_rms_epsilon=("f32", float("nan"))),
        errors.ConfigMismatchError,
        "layer_norm_rms_epsilon' is nan",
    ),
    "token id below 0": (
        general("tokenizer.ggml.eos_token_id", "i32", -1),
        errors.ConfigMismatchError,
        "eos_token_id' is -1; expected a token id",
    ),
    "wider": (
        llama(embedding_length=("u32", 128)),
        errors.TensorShapeError,
        r"token_embd.weight': found \[56, 64\]; expected \[56, 128\]",
    ),
    "no embedding": (lambda _, stored: stored.pop("token_embd.weight"), errors.MissingTensorError, "token_embd.weight'"),
    "no norm": (lambda _, stored: stored.pop("output_norm.weight"), errors.MissingTensorError, "output_norm.weight'"),
    "one more": (
        lambda _, stored: stored.update({"blk.0.attn_q_norm.weight": ("float32", np.ones(16, np.float32))}),
        errors.UnexpectedTensorError,
        "attn_q_norm.weight'",
    ),
    "norm in blocks": (
        lambda _, stored: stored.update({"output_norm.weight": ("q8_0", np.zeros((2, 34), np.uint8))}),
        errors.TensorDtypeError,
        "output_norm.weight': found q8_0",
    ),
    "shape": (
        lambda _, stored: stored.update({"output.weight": ("q8_0", np.zeros((55, 2, 34), np.uint8))}),
        errors.TensorShapeError,
        r"output.weight': found \[55, 64\]; expected \[56, 64\]",
    ),
    "scale that is no number": (
        lambda _, stored: stored["blk.0.attn_q.weight"][1].__setitem__((3, 1, slice(0, 2)), 255),
        errors.TensorNotFiniteError,
        "attn_q.weight': found 1 NaN or infinite of 128 scales",
    ),
    "scale below zero": (
        lambda _, stored: stored["blk.0.attn_q.weight"][1].__setitem__((3, 1, 1), 0x80 | 0x30),
        errors.CorruptFileError,
        "attn_q.weight': found a scale of -",
    ),
    "rotary factors of another kind": (
        rope_scaled(np.linspace(1, 8, 8, dtype=np.float32)),
        errors.UnsupportedError,
        "not of Llama 3.1's kind",
    ),
    "rotary factors that are no numbers": (
        rope_scaled(np.full(8, np.nan, np.float32)),
        errors.UnsupportedError,
        "not of Llama 3.1's kind",
    ),
    "rotary factors of 0": (rope_scaled(np.zeros(8, np.float32)), errors.UnsupportedError, "not of Llama 3.1's kind"),
    "rotary factors of another head": (rope_scaled(np.ones(4, np.float32)), errors.TensorShapeError, r"expected \[8\]"),
}


@pytest.mark.parametrize(("edit", "error", "message"), EDITS.values(), ids=EDITS.keys())
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, edit: Callable[[Metadata, Stored], object], error: type[errors.PaddleDSError], message: str
) -> None:
    metadata, stored = parts()
    edit(metadata, stored)
    (tmp_path / "model.gguf").write_bytes(gguf_makers.gguf_bytes(metadata, stored))
    with pytest.raises(error, match=message) as caught:
        read_all(tmp_path / "model.gguf")
    assert str(tmp_path / "model.gguf") in caught.value.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("default", 1.0)),
        ({"rope__scaling__type": ("str", "none"), "rope__scaling__factor": ("f32", 4.0)}, ("default", 1.0)),
        ({"rope__scaling__factor": ("f32", 4.0)}, ("linear", 4.0)),
        ({"rope__scale_linear": ("f32", 2.0)}, ("linear", 2.0)),
        ({"rope__scaling__type": ("str", "yarn"), "rope__scaling__factor": ("f32", 4.0)}, ("yarn", 4.0)),
    ],
    ids=["absent", "none", "a factor alone", "the old key", "yarn"],
)
def test_rotary_scaling_is_read_as_llama_cpp_reads_it(
    tmp_path: Path, changes: dict[str, tuple[str, Any]], expected: tuple[str, float]
) -> None:
    metadata, stored = parts()
    llama(**changes)(metadata, stored)
    (tmp_path / "model.gguf").write_bytes(gguf_makers.gguf_bytes(metadata, stored))
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        scaling = checkpoint.config.rope_scaling
        assert (scaling.rope_type, scaling.factor) == expected


def test_every_end_of_an_answer_is_kept(tmp_path: Path) -> None:
    metadata, stored = parts()
    metadata |= {"tokenizer.ggml.eot_token_id": ("u32", 5), "tokenizer.ggml.eom_token_id": ("u32", 2)}
    (tmp_path / "model.gguf").write_bytes(gguf_makers.gguf_bytes(metadata, stored))
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert checkpoint.config.eos_token_ids == (2, 5)
