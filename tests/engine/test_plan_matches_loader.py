"""The memory plan, made from the inventory, says what the loader then takes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.config.engine import EngineConfig, Quant
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.engine.assets import EMBEDDED_MODEL, recipe_for
from paddle_ds.kernels.registry import choose
from paddle_ds.runtime.loader import load_decoder
from paddle_ds.runtime.memory_plan import weight_bytes

NAMES = ["llama-tied", "llama-biases", "llama-fp16", "llama-head-dim", "qwen2-gqa-tied", "qwen2-bf16-sharded", "embedded"]


@pytest.mark.parametrize("quant", get_args(Quant))
@pytest.mark.parametrize("name", NAMES)
def test_weights_take_the_bytes_that_were_planned(golden_dir: Path, name: str, quant: Quant) -> None:
    with open_checkpoint(EMBEDDED_MODEL if name == "embedded" else golden_dir / "hf" / name) as checkpoint:
        recipe = recipe_for(checkpoint, EngineConfig(quant=quant))
        planned = weight_bytes(checkpoint.config, recipe, checkpoint.stored())
        decoder = load_decoder(checkpoint, recipe, choose(CpuDevice(), only="reference"))
    assert decoder.weight_bytes() == planned
