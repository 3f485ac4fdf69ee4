"""``native``: compressed-tensors, through the library's own writer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paddle_ds.checkpoints.base import Checkpoint, Progress
from paddle_ds.checkpoints.native import write_native_into
from paddle_ds.config.tensors import Role, TensorSpec
from paddle_ds_slim.exporters.target import Found, Planned, Target, counted


class NativeTarget(Target):
    """Integers stay; linears and an untied head in floating point become W8A8 by rounding to nearest.

    INT8 whose groups of inputs share one scale per output channel anyway, as in a GGUF that came from such a checkpoint,
    becomes that: the same weights, smaller and faster.
    """

    name = "native"

    def __init__(self, *, keep_groups: bool = False) -> None:
        self._keep_groups = keep_groups

    def check(self, source: Checkpoint) -> None:
        """Whatever can be read can be written."""

    def plan(self, spec: TensorSpec, found: Found) -> Planned:
        if spec.role not in (Role.LINEAR, Role.HEAD) or found.is_ignored:
            return found.as_stored()
        if not found.is_integer:
            return Planned("int8")
        if found.stored.dtype == "int8" and not self._keep_groups and found.is_per_channel():
            return Planned("int8")
        return found.as_stored()

    def write(self, converted: Checkpoint, directory: Path, progress: Progress | None) -> None:
        write_native_into(converted, directory, progress)

    def remarks(self, source: Checkpoint, planned: dict[str, Planned]) -> Iterator[str]:
        stored = source.stored()
        grouped = [name for name, tensor in stored.items() if tensor.groups is not None and tensor.dtype == "int8"]
        collapsed = [name for name in grouped if planned[name].groups is None]
        if collapsed:
            yield (
                f"{len(collapsed)} of {counted(len(grouped), 'INT8 weight')} in groups of inputs: every output channel has "
                "one scale in all its groups, and is stored so."
            )
        if len(collapsed) < len(grouped):
            left = counted(len(grouped) - len(collapsed), "INT8 weight")
            yield f"Still in groups of inputs, pack-quantized, with activations in floating point: {left}."
