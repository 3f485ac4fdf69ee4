"""``gguf-q8_0``: blocks of 32 inputs with a float16 scale, for llama.cpp and what stands on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paddle_ds.checkpoints.base import Checkpoint, Groups, Progress
from paddle_ds.config.tensors import Role, TensorSpec, model_specs
from paddle_ds_slim.exporters.gguf_model import check_gguf, write_gguf
from paddle_ds_slim.exporters.target import Found, Planned, Target, counted, some_names
from paddle_ds_slim.exporters.weights import BLOCK


class GgufQ8Target(Target):
    """Integers stay where blocks of 32 can hold them: INT8 per channel, and 4 or 8 bits in groups of whole blocks.

    Linears and an untied head in floating point are rounded to nearest, as llama.cpp does. The embedding, which llama.cpp would
    round too, and what the source leaves alone on purpose become F16.
    """

    name = "gguf-q8_0"

    def check(self, source: Checkpoint) -> None:
        check_gguf(source)

    def plan(self, spec: TensorSpec, found: Found) -> Planned:
        if spec.role in (Role.NORM, Role.BIAS):
            return Planned("float32")
        if spec.role is Role.EMBEDDING or found.is_ignored or spec.shape[1] % BLOCK:
            return Planned("float16")
        return Planned("int8", Groups(BLOCK, spec.shape[1] // BLOCK), "float16")

    def write(self, converted: Checkpoint, directory: Path, progress: Progress | None) -> None:
        write_gguf(converted, directory / "model-q8_0.gguf", "MOSTLY_Q8_0", progress)

    def remarks(self, source: Checkpoint, planned: dict[str, Planned]) -> Iterator[str]:
        linears = [spec for spec in model_specs(source.config) if spec.role in (Role.LINEAR, Role.HEAD)]
        ragged = [spec.name for spec in linears if spec.shape[1] % BLOCK and spec.name not in source.ignored()]
        if ragged:
            yield (
                f"F16 and not Q8_0, because the length of a row is no multiple of {BLOCK}, as llama.cpp requires: "
                f"{counted(len(ragged), 'linear')}, {some_names(ragged)}."
            )
        yield from remarks_on_gguf(source)


def remarks_on_gguf(source: Checkpoint) -> Iterator[str]:
    """What both GGUF targets leave behind."""
    if not (source.directory / "tokenizer.json").is_file():
        yield "There is no tokenizer.json beside the weights: the file is without a vocabulary and works on token ids only."
