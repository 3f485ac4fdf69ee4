"""``gguf-f16``: matrices in F16, for llama.cpp's tools to quantise further."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paddle_ds.checkpoints.base import Checkpoint, Progress
from paddle_ds.config.tensors import Role, TensorSpec
from paddle_ds_slim.exporters.gguf_model import check_gguf, write_gguf
from paddle_ds_slim.exporters.gguf_q8_0 import remarks_on_gguf
from paddle_ds_slim.exporters.target import Found, Planned, Target


class GgufF16Target(Target):
    """Integers are dequantised. Norms and biases are F32."""

    name = "gguf-f16"

    def check(self, source: Checkpoint) -> None:
        check_gguf(source)

    def plan(self, spec: TensorSpec, found: Found) -> Planned:
        return Planned("float32" if spec.role in (Role.NORM, Role.BIAS) else "float16")

    def write(self, converted: Checkpoint, directory: Path, progress: Progress | None) -> None:
        write_gguf(converted, directory / "model-f16.gguf", "MOSTLY_F16", progress)

    def remarks(self, source: Checkpoint, planned: dict[str, Planned]) -> Iterator[str]:
        yield from remarks_on_gguf(source)
