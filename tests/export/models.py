"""Small checkpoints of every kind that is exported, made without the code under test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints import makers
from paddle_ds.config.engine import Quant


class Kind(NamedTuple):
    """How to write a checkpoint and what to ask for."""

    write: Callable[[Path], Path]
    quant: Quant
    #: operators of ours that a compiled program has
    runs: tuple[str, ...]


def hf(dtype: str = "float32", architecture: Any = makers.QWEN2, **changes: Any) -> Callable[[Path], Path]:
    """A Hugging Face checkpoint in floating point."""
    config = makers.config_json(architecture, **changes)
    return lambda path: makers.write_hf(path, config, makers.random_tensors(config), dtype)


def compressed(ignore: list[str]) -> Callable[[Path], Path]:
    """compressed-tensors W8A8 whose author left ``ignore`` alone."""

    def write(path: Path) -> Path:
        config = makers.config_json()
        tensors = makers.random_tensors(config)
        stored = makers.compressed_tensors(tensors)
        for name in ignore:
            stored.pop(f"{name}.weight_scale", None)
            stored[f"{name}.weight"] = tensors[f"{name}.weight"]
        return makers.write_hf(path, {**config, "quantization_config": makers.w8a8_scheme(ignore)}, stored)

    return write


def gptq(bits: int, act_order: bool) -> Callable[[Path], Path]:
    """GPTQ in groups of 32 with zero points; its words are random, all of which mean something."""

    def write(path: Path) -> Path:
        config = makers.config_json(hidden_size=64, intermediate_size=96)
        random, stored = np.random.default_rng(bits), makers.Tensors()
        for name, values in makers.random_tensors(config).items():
            if not makers.is_linear(name):
                stored[name] = values
                continue
            (num_out, num_in), module = values.shape, name.removesuffix(".weight")
            groups, lanes = num_in // 32, 32 // bits
            index = np.arange(num_in, dtype=np.int32) // 32
            words = random.integers(-(2**31), 2**31, (num_in // lanes + groups, num_out), dtype=np.int32)
            stored[f"{module}.qweight"] = words[: num_in // lanes]
            stored[f"{module}.qzeros"] = np.ascontiguousarray(words[num_in // lanes :, : num_out // lanes])
            stored[f"{module}.scales"] = random.uniform(2e-3, 4e-2 / bits, (groups, num_out)).astype(np.float16)
            stored[f"{module}.g_idx"] = random.permutation(index) if act_order else index
        scheme = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": act_order, "sym": False}
        return makers.write_hf(path, {**config, "quantization_config": {**scheme, "checkpoint_format": "gptq_v2"}}, stored)

    return write


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3 = {**_YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_BIASES = {"attention_bias": True, "mlp_bias": True}
_WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}

_FUSED = ("pds_export_decoder", "pds_export_int8_linear", "pds_rms_norm")
_PIECES = ("pds_export_attention", "pds_export_float_linear", "pds_rms_norm", "pds_rotary", "pds_silu_mul")
_GROUPED = tuple(sorted((*_PIECES, "pds_export_grouped_linear")))
_MIXED = tuple(sorted((*_PIECES, "pds_export_int8_linear")))

KINDS: dict[str, Kind] = {
    "w8a8, qwen2": Kind(hf(), "w8a8", _FUSED),
    "w8a8, whole groups of 64": Kind(hf(**_WIDE), "w8a8", _FUSED),
    "w8a8, llama, every bias": Kind(hf(architecture=makers.LLAMA, **_BIASES), "w8a8", _FUSED),
    "w8a8, tied head, llama3 rope": Kind(hf(tie_word_embeddings=True, rope_scaling=_LLAMA3), "w8a8", _FUSED),
    "w8a8 stored, head left alone": Kind(
        compressed(["lm_head"]), "auto", ("pds_export_decoder", "pds_export_float_linear", "pds_rms_norm")
    ),
    "w8a8 stored, one part of qkv left alone": Kind(compressed(["lm_head", "model.layers.1.self_attn.k_proj"]), "auto", _MIXED),
    "w8a16": Kind(hf(), "w8a16", _PIECES),
    "w4a16 in groups": Kind(gptq(4, act_order=False), "auto", _GROUPED),
    "w4a16 in groups out of order": Kind(gptq(4, act_order=True), "auto", _GROUPED),
    "w8a16 in groups": Kind(gptq(8, act_order=False), "auto", _GROUPED),
    "float32, qwen2, yarn": Kind(hf(rope_scaling=_YARN), "none", _PIECES),
    "float32, llama, tied head": Kind(hf(architecture=makers.LLAMA, tie_word_embeddings=True), "none", _PIECES),
    "bfloat16, linear rope": Kind(hf("bfloat16", rope_scaling={"rope_type": "linear", "factor": 2.0}), "none", _PIECES),
    "float16": Kind(hf("float16"), "none", _PIECES),
}
