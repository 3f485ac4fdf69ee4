"""Small random checkpoints in every format that ``convert`` reads, made without the code under test, each with its truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from checkpoints import makers
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, model_specs

GROUP = 32

MODELS = {
    "llama-tied": (makers.LLAMA, True),
    "llama-untied": (makers.LLAMA, False),
    "qwen2-tied": (makers.QWEN2, True),
    "qwen2-untied": (makers.QWEN2, False),
}


@dataclasses.dataclass(frozen=True)
class Quantised:
    """``integers`` int32 ``[out, in]`` (zero points taken off) times ``scales`` float32 ``[out, in]``."""

    integers: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return self.integers.astype(np.float32) * self.scales


@dataclasses.dataclass(frozen=True)
class Dense:
    """float32 values that were stored in a type that holds them."""

    values: np.ndarray


Truth = dict[str, Quantised | Dense]
Make = Callable[[Path, dict[str, Any], makers.Tensors], Truth]


def is_linear(name: str) -> bool:
    return makers.is_linear(name)


def as_dense(values: np.ndarray, dtype: str) -> Dense:
    return Dense(makers.from_dtype(makers.to_dtype(values, dtype), dtype))


def spread(scales: np.ndarray, num_in: int, index: np.ndarray | None = None) -> np.ndarray:
    """``[out, G]`` -> ``[out, in]``."""
    size = -(-num_in // scales.shape[1])
    return scales[:, np.arange(num_in) // size if index is None else index]


def bit_words(integers: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned ``[rows, n]`` -> int32 ``[rows, n * bits / 32]``, the first in the lowest bits."""
    per_word = 32 // bits
    rows, count = integers.shape
    padded = np.zeros((rows, -(-count // per_word) * per_word), np.uint32)
    padded[:, :count] = integers
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    return np.bitwise_or.reduce(padded.reshape(rows, -1, per_word) << shifts, axis=2).astype(np.uint32).view(np.int32)


def symmetric_groups(values: np.ndarray, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Signed integers ``[out, in]`` and float16 scales ``[out, G]`` as float32."""
    num_out, num_in = values.shape
    groups = values.reshape(num_out, num_in // size, size)
    scales = (np.abs(groups).max(axis=2) / (2 ** (bits - 1) - 1)).astype(np.float16).astype(np.float32)
    integers = np.rint(groups / scales[:, :, None]).reshape(num_out, num_in)
    return np.clip(integers, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int32), scales


def asymmetric_groups(values: np.ndarray, group_of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unsigned 4-bit integers ``[out, in]``, zero points and float16 scales ``[out, G]``; inputs grouped by ``group_of``."""
    num_groups = int(group_of.max()) + 1
    low = np.stack([values[:, group_of == g].min(axis=1) for g in range(num_groups)], axis=1)
    high = np.stack([values[:, group_of == g].max(axis=1) for g in range(num_groups)], axis=1)
    scales = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zeros = np.clip(np.rint(-low / scales), 0, 15).astype(np.int32)
    integers = np.clip(np.rint(values / scales[:, group_of]) + zeros[:, group_of], 0, 15).astype(np.int32)
    return integers, zeros, scales


def make_float(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Truth:
    makers.write_hf(directory, config | {"torch_dtype": "bfloat16"}, tensors, "bfloat16")
    return {name: as_dense(values, "bfloat16") for name, values in tensors.items()}


def make_paddlenlp(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Truth:
    makers.write_paddlenlp(directory, config, makers.paddlenlp_tensors(config, tensors, "float16"))
    return {name: as_dense(values, "float16") for name, values in tensors.items()}


def channel_truth(tensors: makers.Tensors, scale_dtype: str, rest_dtype: str) -> Truth:
    truth: Truth = {}
    for name, values in tensors.items():
        if is_linear(name):
            integers, scales = makers.quantized(values)
            kept = as_dense(scales[:, None], scale_dtype).values
            truth[name] = Quantised(integers.astype(np.int32), np.broadcast_to(kept, values.shape))
        else:
            truth[name] = as_dense(values, rest_dtype)
    return truth


def make_paddlenlp_int8(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Truth:
    stored = makers.paddlenlp_tensors(config, tensors, "float16", is_int8=True)
    algorithm = {"quantization_config": {"weight_quantize_algo": "llm.int8"}}
    makers.write_paddlenlp(directory, config | algorithm, stored)
    return channel_truth(tensors, "float16", "float16")


def make_w8a8(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Truth:
    scheme = {"quantization_config": makers.w8a8_scheme()}
    makers.write_hf(directory, config | scheme, makers.compressed_tensors(tensors))
    return channel_truth(tensors, "float32", "float32")


def make_packed(bits: int, size: int | None) -> Make:
    """pack-quantized compressed-tensors, symmetric, activations in floating point."""

    def make(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Truth:
        stored: makers.Tensors = {}
        truth: Truth = {}
        for name, values in tensors.items():
            if not is_linear(name):
                stored[name], truth[name] = values, Dense(values)
                continue
            integers, scales = symmetric_groups(values, bits, size or values.shape[1])
            stored[f"{name}_packed"] = bit_words(integers + 2 ** (bits - 1), bits)
            stored[f"{name}_scale"] = scales
            stored[f"{name}_shape"] = np.array(values.shape, np.int64)
            truth[name] = Quantised(integers, spread(scales, values.shape[1]))
        scheme = makers.w8a8_scheme(num_bits=bits, strategy="channel" if size is None else "group", group_size=size)
        scheme["format"] = "pack-quantized"
        scheme["config_groups"]["group_0"]["input_activations"] = None
        write_safetensors(directory, config | {"quantization_config": scheme}, stored)
        return truth

    return make


def make_gptq(bits: int, size: int, *, act_order: bool = False) -> Make:
    """As gptqmodel writes it: symmetric, zero points less one; in activation order asymmetric and with shuffled groups."""

    def make(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Truth:
        stored: makers.Tensors = {}
        truth: Truth = {}
        random = np.random.default_rng(1)
        for name, values in tensors.items():
            if not is_linear(name):
                stored[name], truth[name] = values.astype(np.float16), as_dense(values, "float16")
                continue
            num_in = values.shape[1]
            used = num_in if size == -1 else size
            index = np.arange(num_in, dtype=np.int32) // used
            if act_order:
                random.shuffle(index)
                integers, zeros, scales = asymmetric_groups(values, index)
            else:
                signed, scales = symmetric_groups(values, bits, used)
                integers, zeros = signed + 2 ** (bits - 1), np.full(scales.shape, 2 ** (bits - 1), np.int32)
            module = name.removesuffix(".weight")
            stored[f"{module}.qweight"] = bit_words_down(integers.T, bits)
            # less one over whole words, as AutoGPTQ does it
            ones = np.uint32(sum(1 << (bits * lane) for lane in range(32 // bits)))
            stored[f"{module}.qzeros"] = (bit_words(zeros.T, bits).view(np.uint32) - ones).view(np.int32)
            stored[f"{module}.scales"] = np.ascontiguousarray(scales.T).astype(np.float16)
            stored[f"{module}.g_idx"] = index
            truth[name] = Quantised(integers - zeros[:, index], scales[:, index])
        fields = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": not act_order, "desc_act": act_order}
        write_safetensors(directory, config | {"quantization_config": fields}, stored)
        return truth

    return make


def bit_words_down(integers: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned ``[n, columns]`` -> int32 ``[n * bits / 32, columns]``."""
    return np.ascontiguousarray(bit_words(np.ascontiguousarray(integers.T), bits).T)


def make_awq(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Truth:
    """As AutoAWQ writes it: the outputs of a word interleaved, zero points as they are."""
    stored: makers.Tensors = {}
    truth: Truth = {}
    for name, values in tensors.items():
        if not is_linear(name):
            stored[name], truth[name] = values.astype(np.float16), as_dense(values, "float16")
            continue
        index = np.arange(values.shape[1]) // GROUP
        integers, zeros, scales = asymmetric_groups(values, index)
        module = name.removesuffix(".weight")
        stored[f"{module}.qweight"] = awq_words(integers.T)
        stored[f"{module}.qzeros"] = awq_words(zeros.T)
        stored[f"{module}.scales"] = np.ascontiguousarray(scales.T).astype(np.float16)
        truth[name] = Quantised(integers - zeros[:, index], scales[:, index])
    fields = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    write_safetensors(directory, config | {"quantization_config": fields}, stored)
    return truth


def awq_words(integers: np.ndarray) -> np.ndarray:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    rows = integers.shape[0]
    return bit_words(integers.reshape(rows, -1, 8)[:, :, order].reshape(rows, -1), 4)


def make_gguf(kind: str) -> Make:
    """Written and rounded by the ``gguf`` package, as llama.cpp's converter does it, the embedding too."""

    def make(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Truth:
        directory.mkdir(parents=True)
        model = ModelConfig.from_dict(config)
        architecture = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}[model.architecture]
        writer = gguf.GGUFWriter(directory / f"model-{kind}.gguf", architecture)
        writer.add_tokenizer_model("no_vocab")
        writer.add_context_length(model.max_position_embeddings)
        writer.add_embedding_length(model.hidden_size)
        writer.add_block_count(model.num_layers)
        writer.add_feed_forward_length(model.intermediate_size)
        writer.add_head_count(model.num_heads)
        writer.add_head_count_kv(model.num_kv_heads)
        writer.add_layer_norm_rms_eps(model.rms_norm_eps)
        writer.add_rope_freq_base(model.rope_theta)
        names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), model.num_layers)
        truth: Truth = {}
        for spec in model_specs(model):
            truth[spec.name], data, raw_type = gguf_tensor(tensors[spec.name], spec.role, kind)
            if architecture == "llama" and (".q_proj." in spec.name or ".k_proj." in spec.name):
                heads = model.num_heads if ".q_proj." in spec.name else model.num_kv_heads
                data = data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
            writer.add_tensor(names.get_name(spec.name, (".weight", ".bias")), data, raw_dtype=raw_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return truth

    return make


def gguf_tensor(values: np.ndarray, role: Role, kind: str) -> tuple[Quantised | Dense, np.ndarray, Any]:
    if role in (Role.NORM, Role.BIAS):
        return Dense(values), values, gguf.GGMLQuantizationType.F32
    if kind == "f16":
        return as_dense(values, "float16"), values.astype(np.float16), gguf.GGMLQuantizationType.F16
    raw_type = gguf.GGMLQuantizationType.Q8_0
    data = gguf.quants.quantize(values, raw_type)
    blocks = data.reshape(values.shape[0], -1, 34)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0].astype(np.float32)
    integers = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8).reshape(values.shape).astype(np.int32)
    known = Quantised(integers, spread(scales, values.shape[1]))
    return Dense(known.values) if role is Role.EMBEDDING else known, data, raw_type


def write_safetensors(directory: Path, config: Mapping[str, Any], stored: makers.Tensors) -> None:
    codes = {name: "I32" for name, values in stored.items() if values.dtype == np.int32}
    makers.write_files(directory, "model", ".safetensors", [makers.safetensors_bytes(stored, codes)], [[]])
    makers.write_json(directory / "config.json", config)


SOURCES: dict[str, Make] = {
    "float": make_float,
    "paddlenlp": make_paddlenlp,
    "paddlenlp-int8": make_paddlenlp_int8,
    "w8a8": make_w8a8,
    "w8a16": make_packed(8, None),
    "w4a16": make_packed(4, None),
    "w4a16-group": make_packed(4, GROUP),
    "gptq-int4": make_gptq(4, GROUP),
    "gptq-int4-act-order": make_gptq(4, GROUP, act_order=True),
    "gptq-int8": make_gptq(8, -1),
    "gptq-int8-group": make_gptq(8, GROUP),
    "awq": make_awq,
    "gguf-f16": make_gguf("f16"),
    "gguf-q8_0": make_gguf("q8_0"),
}


def model_config(model: str, **changes: Any) -> dict[str, Any]:
    architecture, is_tied = MODELS[model]
    extents = {"hidden_size": 64, "intermediate_size": 96}
    return makers.config_json(architecture, **{**extents, "tie_word_embeddings": is_tied, **changes})


def write_simple(directory: Path, **changes: Any) -> Path:
    config = model_config("llama-untied", **changes)
    return makers.write_hf(directory, config, makers.random_tensors(config))
