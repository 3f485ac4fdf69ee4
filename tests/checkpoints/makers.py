"""Small random checkpoints in every layout, made without the code under test."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, model_specs

Tensors = dict[str, np.ndarray]

#: our name of a type -> its code in a safetensors header
CODES = {
    **{"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"},
    **{"int8": "I8", "uint16": "U16", "int32": "I32", "int64": "I64"},
}

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def config_json(architecture: Mapping[str, Any] = QWEN2, **changes: Any) -> dict[str, Any]:
    """A tiny ``config.json``; every extent differs from the others, so that a swapped pair cannot pass."""
    return {
        **architecture,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 56,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """float32 tensors by canonical name."""
    random = np.random.default_rng(seed)
    specs = model_specs(ModelConfig.from_dict(config))
    return {spec.name: random.normal(0, 0.3, spec.shape).astype(np.float32) for spec in specs}


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 as another type, bfloat16 by cutting off bits (so that the way back is exact)."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def from_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """What :func:`to_dtype` kept, as float32."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def safetensors_bytes(tensors: Mapping[str, np.ndarray], codes: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file; ``codes`` overrides element types by name (``BF16`` for uint16 patterns)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        payload = np.ascontiguousarray(values).tobytes()
        code = (codes or {}).get(name) or CODES[str(values.dtype)]
        header[name] = {"dtype": code, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(payload)]}
        data += payload
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def split(tensors: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """``count`` parts of nearly equal length, in order."""
    names = list(tensors)
    cuts = [round(index * len(names) / count) for index in range(count + 1)]
    return [{name: tensors[name] for name in names[a:b]} for a, b in itertools.pairwise(cuts)]


def write_files(directory: Path, stem: str, suffix: str, parts: list[bytes], names: list[list[str]]) -> None:
    """One file, or shards and their index, named as Hugging Face and PaddleNLP do."""
    directory.mkdir(parents=True, exist_ok=True)
    if len(parts) == 1:
        (directory / f"{stem}{suffix}").write_bytes(parts[0])
        return
    weight_map = {}
    for number, (part, part_names) in enumerate(zip(parts, names, strict=True), 1):
        file_name = f"{stem}-{number:05d}-of-{len(parts):05d}{suffix}"
        (directory / file_name).write_bytes(part)
        weight_map |= dict.fromkeys(part_names, file_name)
    index = {"metadata": {"total_size": sum(map(len, parts))}, "weight_map": weight_map}
    write_json(directory / f"{stem}{suffix}.index.json", index)


def write_hf(directory: Path, config: Mapping[str, Any], tensors: Tensors, dtype: str = "float32", num_shards: int = 1) -> Path:
    """A Hugging Face directory. Tensors that are not float32 are written as they are."""
    stored = {n: to_dtype(v, dtype) if v.dtype == np.float32 else v for n, v in tensors.items()}
    codes = {name: CODES[dtype] for name, values in tensors.items() if values.dtype == np.float32}
    parts = split(stored, num_shards)
    payloads = [safetensors_bytes(part, codes) for part in parts]
    write_files(directory, "model", ".safetensors", payloads, [list(part) for part in parts])
    write_json(directory / "config.json", config)
    return directory


def quantized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Plain round-to-nearest, int8 ``[out, in]`` and float32 ``[out]``."""
    scales = np.abs(values).max(axis=1) / 127
    return np.rint(values / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def is_linear(name: str) -> bool:
    return "proj.weight" in name


def w8a8_scheme(ignore: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    """A ``quantization_config`` like the published ones; ``changes`` go into the weights' scheme."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False, "group_size": None}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights | changes, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"] if ignore is None else ignore,
        "quantization_status": "compressed",
    }


def compressed_tensors(tensors: Tensors, scale_dtype: str = "float32", scale_columns: bool = True) -> Tensors:
    """Linears as int8 and scales; the rest as it is."""
    stored: Tensors = {}
    for name, values in tensors.items():
        if not is_linear(name):
            stored[name] = values
            continue
        integers, scales = quantized(values)
        stored[name] = integers
        stored[f"{name}_scale"] = to_dtype(scales[:, None] if scale_columns else scales, scale_dtype)
    return stored


def paddlenlp_tensors(
    config: Mapping[str, Any], tensors: Tensors, dtype: str = "float32", is_int8: bool = False, writes_tied_head: bool = True
) -> Tensors:
    """PaddleNLP's names and orientation; bfloat16 as uint16."""
    model = ModelConfig.from_dict(config)
    prefix = {"Qwen2ForCausalLM": "qwen2.", "LlamaForCausalLM": "llama."}[model.architecture]
    stored: Tensors = {}
    for spec in model_specs(model):
        values, name = tensors[spec.name], spec.name.replace("model.", prefix, 1)
        if spec.role is Role.LINEAR and is_int8:
            integers, scales = quantized(values)
            stored[name.replace(".weight", ".quant_weight")] = integers
            stored[name.replace(".weight", ".quant_scale")] = to_dtype(scales, dtype)
        elif spec.role in (Role.LINEAR, Role.HEAD):
            stored[name] = to_dtype(np.ascontiguousarray(values.T), dtype)
        else:
            stored[name] = to_dtype(values, dtype)
    if model.tie_word_embeddings and writes_tied_head:
        stored["lm_head.weight"] = stored[f"{prefix}embed_tokens.weight"]
    return stored


def pdparams_bytes(tensors: Mapping[str, Any], protocol: int = 4) -> bytes:
    """What ``paddle.save`` of a state dict writes, its table of parameter names included."""
    table = {name: f"linear_{number}.w_0" for number, name in enumerate(tensors)}
    return pickle.dumps({**tensors, "StructuredToParameterName@@": table}, protocol=protocol)


def write_paddlenlp(
    directory: Path, config: Mapping[str, Any], stored: Tensors, container: str = "pdparams", num_shards: int = 1
) -> Path:
    """A PaddleNLP directory from :func:`paddlenlp_tensors`."""
    parts = split(stored, num_shards)
    names = [list(part) for part in parts]
    if container == "pdparams":
        write_files(directory, "model_state", ".pdparams", [pdparams_bytes(part) for part in parts], names)
    else:
        write_files(directory, "model", ".safetensors", [safetensors_bytes(part) for part in parts], names)
    write_json(directory / "config.json", config)
    return directory
