"""A model with outliers in its activations that the weights after them take back, so that its float function is unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from checkpoints import makers
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.native import COMPANIONS
from paddle_ds.config.tensors import model_specs


def plant_outliers(source: Path, out: Path, *, factor: float = 100.0, channels: int = 3) -> Path:
    """Write the float model at ``source`` to ``out`` with some channels behind each norm times ``factor``.

    The norms' weights grow, and the columns of what reads them shrink by as much.
    """
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        tensors = {spec.name: checkpoint.read(spec).to_float32().copy() for spec in model_specs(config)}
        raw = {key: value for key, value in checkpoint.raw_config().items() if key != "quantization_config"}
    random = np.random.default_rng(7)
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        pairs = {
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        }
        for norm, readers in pairs.items():
            loud = random.choice(config.hidden_size, channels, replace=False)
            tensors[f"{prefix}{norm}.weight"][loud] *= factor
            for reader in readers:
                tensors[f"{prefix}{reader}.weight"][:, loud] /= factor
    raw["torch_dtype"] = "float32"
    makers.write_hf(out, raw, tensors)
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    assert json.loads((out / "config.json").read_text())
    return out
