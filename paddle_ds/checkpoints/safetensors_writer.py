"""Streaming writer of ``.safetensors``: the header first, then tensors in any order, none of them kept.

Inside a file wide types come before narrow ones, so that every tensor is aligned to its element size.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from paddle_ds.checkpoints.dtypes import NUMPY_DTYPES, Array
from paddle_ds.checkpoints.safetensors_file import DTYPES

_CODES = {name: code for code, name in DTYPES.items()}
_CHUNK_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


def plan_shards(groups: Iterable[Sequence[PlannedTensor]], max_shard_bytes: int) -> list[list[PlannedTensor]]:
    """Spread groups over shards in order. A group (a weight and its scales) is never torn, even above the limit."""
    shards: list[list[PlannedTensor]] = [[]]
    filled_bytes = 0
    for group in groups:
        group_bytes = sum(tensor.nbytes for tensor in group)
        if shards[-1] and filled_bytes + group_bytes > max_shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1] += group
        filled_bytes += group_bytes
    return shards


def shard_names(count: int) -> list[str]:
    """Hugging Face's names: one file, or ``model-00001-of-00003.safetensors`` and so on."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_index(directory: Path, shards: Sequence[Sequence[PlannedTensor]]) -> None:
    """``model.safetensors.index.json`` for several shards; nothing for one."""
    if len(shards) == 1:
        return
    names = shard_names(len(shards))
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total_bytes = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class SafetensorsWriter:
    """Writes one file. Use as a context manager; leaving it checks that nothing was forgotten."""

    def __init__(self, path: Path, tensors: Sequence[PlannedTensor]) -> None:
        ordered = sorted(tensors, key=lambda tensor: -NUMPY_DTYPES[tensor.dtype].itemsize)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._offsets: dict[str, int] = {}
        self._planned = {tensor.name: tensor for tensor in tensors}
        assert len(self._planned) == len(tensors), "a name is planned twice"
        end = 0
        for tensor in ordered:
            self._offsets[tensor.name] = end
            end += tensor.nbytes
            span = [end - tensor.nbytes, end]
            header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        text = json.dumps(header, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        self._data_start = 8 + len(text)
        self._file = path.open("wb")
        try:
            self._file.write(len(text).to_bytes(8, "little") + text)
            self._file.truncate(self._data_start + end)
        except OSError:
            self._file.close()
            raise

    def write(self, name: str, values: Array) -> None:
        """Write a planned tensor. ``values`` must have the planned shape and its type's numpy form."""
        planned = self._planned.pop(name)
        assert values.shape == planned.shape, f"{name}: {values.shape}, planned {planned.shape}"
        assert values.dtype == NUMPY_DTYPES[planned.dtype], f"{name}: {values.dtype}, planned {planned.dtype}"
        self._file.seek(self._data_start + self._offsets[name])
        for block in byte_blocks(values):
            self._file.write(block)

    def close(self) -> None:
        """Flush to the disk, not only to the system."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            assert not self._planned, f"never written: {', '.join(self._planned)}"
        self._file.close()


def byte_blocks(values: Array) -> Iterable[memoryview]:
    """The C-order bytes of an array in blocks; a transposed view is copied block by block and never as a whole."""
    if values.size == 0:
        return
    rows = values if values.ndim > 1 else values.reshape(1, -1)
    block_rows = max(1, _CHUNK_BYTES * len(rows) // max(1, values.nbytes))
    for start in range(0, len(rows), block_rows):
        yield np.ascontiguousarray(rows[start : start + block_rows]).data.cast("B")
