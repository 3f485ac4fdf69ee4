"""Make a checkpoint of random weights in a real model's shape, for benchmarks that care about size and not about sense.

    python tools/make_model.py --shape r1-distill-qwen-1.5b --out DIR [--seed 0] [--dtype bfloat16] [--tokenizer DIR]

Values look like ``normal(0, 0.02)``: one random block, laid end to end from another place for every tensor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from paddle_ds.checkpoints.dtypes import FLOATS, Array, narrow
from paddle_ds.checkpoints.hf_config import hf_config
from paddle_ds.checkpoints.native import COMPANIONS
from paddle_ds.checkpoints.safetensors_writer import (
    PlannedTensor,
    SafetensorsWriter,
    plan_shards,
    shard_names,
    write_index,
)
from paddle_ds.config.model import ModelConfig, RopeScaling
from paddle_ds.config.tensors import Role, TensorSpec, model_specs

_QWEN: dict[str, Any] = {
    "architecture": "Qwen2ForCausalLM",
    "qkv_bias": True,
    "max_position_embeddings": 131072,
    "num_layers": 28,
}
_QWEN_IDS: dict[str, Any] = {"bos_token_id": 151643, "eos_token_ids": (151643,)}
_LLAMA3 = RopeScaling("llama3", factor=8.0, original_max_position_embeddings=8192)
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_ids": (2,),
}

SHAPES: dict[str, ModelConfig] = {
    "r1-distill-qwen-1.5b": ModelConfig(
        **_QWEN,
        **_QWEN_IDS,
        hidden_size=1536,
        intermediate_size=8960,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        vocab_size=151936,
    ),
    "r1-distill-qwen-7b": ModelConfig(
        **_QWEN,
        **_QWEN_IDS,
        hidden_size=3584,
        intermediate_size=18944,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        vocab_size=152064,
    ),
    "r1-distill-llama-8b": ModelConfig(
        architecture="LlamaForCausalLM",
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=_LLAMA3,
        bos_token_id=128000,
        eos_token_ids=(128001,),
    ),
    "tiny-qwen2": ModelConfig("Qwen2ForCausalLM", **_TINY, max_position_embeddings=512, qkv_bias=True),
    "tiny-llama": ModelConfig("LlamaForCausalLM", **_TINY, max_position_embeddings=512),
}

#: odd, so that it shares no factor with a row's length and rows differ
_BLOCK_ELEMENTS = (1 << 23) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=FLOATS, default="bfloat16")
    parser.add_argument("--tokenizer", type=Path, help="directory whose tokenizer files are copied")
    arguments = parser.parse_args()
    started_s = time.monotonic()
    total_bytes = make_model(SHAPES[arguments.shape], arguments.out, arguments.seed, arguments.dtype)
    for name in COMPANIONS if arguments.tokenizer else ():
        if (arguments.tokenizer / name).is_file():
            shutil.copyfile(arguments.tokenizer / name, arguments.out / name)
    print(f"{arguments.out}: {total_bytes / 1e9:.2f} GB in {time.monotonic() - started_s:.1f} s")


def make_model(config: ModelConfig, out: Path, seed: int, dtype: str, max_shard_bytes: int = 4 << 30) -> int:
    """Write the checkpoint; bytes of its tensors. The same seed gives the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    block = narrow(random.normal(0, 0.02, _BLOCK_ELEMENTS).astype(np.float32), dtype)
    one = narrow(np.ones(1, np.float32), dtype)
    specs = {spec.name: spec for spec in model_specs(config)}
    shards = plan_shards(([PlannedTensor(spec.name, spec.shape, dtype)] for spec in specs.values()), max_shard_bytes)
    for file_name, shard in zip(shard_names(len(shards)), shards, strict=True):
        with SafetensorsWriter(out / file_name, shard) as writer:
            for tensor in shard:
                writer.write(tensor.name, _values(specs[tensor.name], block, one, random))
    write_index(out, shards)
    fields = {**hf_config(config), "torch_dtype": dtype}
    (out / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return sum(tensor.nbytes for shard in shards for tensor in shard)


def _values(spec: TensorSpec, block: Array, one: Array, random: np.random.Generator) -> Array:
    """Norms are ones, the rest is the block from a random place on, repeated."""
    if spec.role is Role.NORM:
        return np.repeat(one, spec.num_elements).reshape(spec.shape)
    values = np.empty(spec.num_elements, block.dtype)
    source, filled = int(random.integers(block.size)), 0
    while filled < values.size:
        count = min(values.size - filled, block.size - source)
        values[filled : filled + count] = block[source : source + count]
        filled, source = filled + count, 0
    return values.reshape(spec.shape)


if __name__ == "__main__":
    main()
