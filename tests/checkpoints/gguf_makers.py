"""GGUF files as llama.cpp's converter writes them, made without the code under test."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import makers
import numpy as np

from paddle_ds.config.model import ModelConfig

#: type of metadata -> its number in a GGUF file and how ``struct`` writes it
GGUF_SCALARS = {
    **{"u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i")},
    **{"f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d")},
}
#: type of a tensor -> its number in a GGUF file
GGUF_TYPES = {"float32": 0, "float16": 1, "q8_0": 8, "bfloat16": 30}


def q8_0_blocks(values: np.ndarray) -> np.ndarray:
    """float32 ``[.., n]`` as ``[scale: f16, 32 x int8]``, uint8 ``[.., n / 32, 34]``."""
    blocks = values.reshape(*values.shape[:-1], -1, 32)
    scales = (np.abs(blocks).max(axis=-1, keepdims=True) / 127).astype(np.float16)
    integers = np.rint(blocks / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), integers.view(np.uint8)], axis=-1)


def from_q8_0(blocks: np.ndarray) -> np.ndarray:
    """What :func:`q8_0_blocks` kept, as float32."""
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    wide = blocks[..., 2:].view(np.int8).astype(np.float32) * scales
    return wide.reshape(*blocks.shape[:-2], -1)


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(kind: str, value: Any) -> bytes:
    """A value of metadata with its type: ``u32``, ``str``, ``[str]`` .."""
    if kind.startswith("["):
        items = [gguf_value(kind[1:-1], item) for item in value]
        number = 8 if kind == "[str]" else GGUF_SCALARS[kind[1:-1]][0]
        return struct.pack("<IIQ", 9, number, len(items)) + b"".join(item[4:] for item in items)
    if kind == "str":
        return struct.pack("<I", 8) + gguf_text(value)
    number, code = GGUF_SCALARS[kind]
    return struct.pack("<I", number) + struct.pack(code, value)


def gguf_bytes(
    metadata: Mapping[str, tuple[str, Any]], tensors: Mapping[str, tuple[str, np.ndarray]], version: int = 3, alignment: int = 32
) -> bytes:
    """A GGUF file from values with their types, and tensors with theirs; Q8_0 comes as :func:`q8_0_blocks`."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(gguf_text(key) + gguf_value(kind, value) for key, (kind, value) in metadata.items())
    data = b""
    for name, (kind, values) in tensors.items():
        shape = (*values.shape[:-2], values.shape[-2] * 32) if kind == "q8_0" else values.shape
        head += gguf_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", GGUF_TYPES[kind], len(data))
        data += values.tobytes() + bytes(-values.nbytes % alignment)
    return head + bytes(-len(head) % alignment) + data


def gguf_metadata(config: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """What llama.cpp's converter writes of a ``config.json``; without a tokenizer."""
    architecture = config["model_type"]
    heads, head_dim = config["num_attention_heads"], config.get("head_dim")
    head_dim = head_dim or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    values: dict[str, tuple[str, Any]] = {
        "block_count": ("u32", config["num_hidden_layers"]),
        "context_length": ("u32", config["max_position_embeddings"]),
        "embedding_length": ("u32", config["hidden_size"]),
        "feed_forward_length": ("u32", config["intermediate_size"]),
        "attention.head_count": ("u32", heads),
        "attention.head_count_kv": ("u32", config["num_key_value_heads"]),
        "attention.key_length": ("u32", head_dim),
        "attention.value_length": ("u32", head_dim),
        "attention.layer_norm_rms_epsilon": ("f32", config.get("rms_norm_eps", 1e-6)),
        "rope.dimension_count": ("u32", head_dim),
        "rope.freq_base": ("f32", rope.get("rope_theta") or config.get("rope_theta", 10000.0)),
    }
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": ("str", kind), "rope.scaling.factor": ("f32", rope["factor"])}
    if kind == "yarn":
        values["rope.scaling.original_context_length"] = ("u32", rope["original_max_position_embeddings"])
    return {
        "general.architecture": ("str", architecture),
        "general.type": ("str", "model"),
        **{f"{architecture}.{name}": value for name, value in values.items()},
        "tokenizer.ggml.bos_token_id": ("u32", config["bos_token_id"]),
        "tokenizer.ggml.eos_token_id": ("u32", config["eos_token_id"]),
    }


#: parts of canonical names -> what llama.cpp calls them, the longer first
GGUF_NAMES = {
    **{"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers.": "blk."},
    **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"},
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


def gguf_tensors(config: Mapping[str, Any], tensors: makers.Tensors, dtype: str = "float32") -> dict[str, tuple[str, np.ndarray]]:
    """llama.cpp's names, and its order of the rows of a Llama's q and k; matrices as ``dtype``, the rest float32."""
    model = ModelConfig.from_dict(config)
    stored: dict[str, tuple[str, np.ndarray]] = {}
    for name, original in tensors.items():
        raw, values = name, original
        for part, other in GGUF_NAMES.items():
            raw = raw.replace(part, other)
        if model.architecture == "LlamaForCausalLM" and ("q_proj" in name or "k_proj" in name):
            heads = model.num_heads if "q_proj" in name else model.num_kv_heads
            halves = values.reshape(heads, 2, model.head_dim // 2, *values.shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        if values.ndim == 1:
            stored[raw] = ("float32", values)
        else:
            stored[raw] = (dtype, q8_0_blocks(values) if dtype == "q8_0" else makers.to_dtype(values, dtype))
    return stored


def rope_freqs(config: Mapping[str, Any]) -> np.ndarray:
    """What each frequency is divided by in Llama 3.1's rotary scaling, float32 ``[head_dim / 2]``."""
    rope = config.get("rope_parameters") or config["rope_scaling"]
    base = rope.get("rope_theta") or config["rope_theta"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    length, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / head_dim)
        if wavelength < length / high:
            divisors.append(1.0)
        elif wavelength > length / low:
            divisors.append(rope["factor"])
        else:
            smooth = (length / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)


def write_gguf(path: Path, config: Mapping[str, Any], tensors: makers.Tensors, dtype: str = "float32") -> Path:
    """A file with everything but a tokenizer."""
    stored = gguf_tensors(config, tensors, dtype)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type") == "llama3":
        stored["rope_freqs.weight"] = ("float32", rope_freqs(config))
    path.write_bytes(gguf_bytes(gguf_metadata(config), stored))
    return path


def tokenizer_metadata(directory: Path, pre: str, num_rows: int = 0) -> dict[str, tuple[str, Any]]:
    """What llama.cpp's converter writes of a byte-level ``tokenizer.json``, padded to ``num_rows`` tokens."""
    whole = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = {id_: (token, 1) for token, id_ in whole["model"]["vocab"].items()}
    for token in whole["added_tokens"]:
        text = token["content"]
        looks_special = text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))
        tokens[token["id"]] = (text, 3 if token["special"] or looks_special else 4)
    tokens |= {id_: (f"[PAD{id_}]", 5) for id_ in range(num_rows) if id_ not in tokens}
    ids = {text: id_ for id_, (text, _) in tokens.items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    return {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", pre),
        "tokenizer.ggml.tokens": ("[str]", [tokens[id_][0] for id_ in sorted(tokens)]),
        "tokenizer.ggml.token_type": ("[i32]", [tokens[id_][1] for id_ in sorted(tokens)]),
        "tokenizer.ggml.merges": ("[str]", merges),
        "tokenizer.ggml.bos_token_id": ("u32", ids[config["bos_token"]["content"]]),
        "tokenizer.ggml.eos_token_id": ("u32", ids[config["eos_token"]["content"]]),
        "tokenizer.ggml.padding_token_id": ("u32", ids[config["pad_token"]["content"]]),
        "tokenizer.ggml.add_bos_token": ("bool", config["add_bos_token"]),
        "tokenizer.chat_template": ("str", config["chat_template"]),
    }
