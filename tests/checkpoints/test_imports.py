"""Reading a checkpoint needs numpy; Paddle and PaddleNLP are for those who ask for more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.hub import fetch
from paddle_ds.checkpoints.native import write_native
from paddle_ds.config.tensors import model_specs

with open_checkpoint(sys.argv[1]) as checkpoint:
    for spec in model_specs(checkpoint.config):
        checkpoint.read(spec)
loaded = {"paddle", "paddlenlp", "huggingface_hub", "torch", "safetensors"} & set(sys.modules)
assert not loaded, loaded
"""


def test_a_directory_opens_without_paddle(golden_dir: Path) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(golden_dir / "hf" / "qwen2-bf16-sharded")], check=True, timeout=60)
