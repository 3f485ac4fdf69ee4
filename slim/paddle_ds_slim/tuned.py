"""A checkpoint with some tensors replaced: what quantisation-aware training hands on to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, StoredTensor, Weight
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import TensorSpec


class TunedCheckpoint(Checkpoint):
    """``base``, in floating point, with ``tensors`` (canonical names, float32) in place of its own."""

    format = "tuned"

    def __init__(self, base: Checkpoint, tensors: Mapping[str, Float32Array]) -> None:
        self._base = base
        self._tensors = tensors
        self.config = base.config
        self.directory: Path = base.directory

    def stored(self) -> Mapping[str, StoredTensor]:
        def replaced(name: str, tensor: StoredTensor) -> StoredTensor:
            if name not in self._tensors:
                return tensor
            return StoredTensor(name, tensor.shape, "float32", self._tensors[name].nbytes, tensor.file)

        return {name: replaced(name, tensor) for name, tensor in self._base.stored().items()}

    def schemes(self) -> Mapping[str, Scheme]:
        return {}

    def ignored(self) -> frozenset[str]:
        return frozenset()

    def raw_config(self) -> dict[str, Any]:
        return self._base.raw_config()

    def read(self, spec: TensorSpec) -> Weight:
        values = self._tensors.get(spec.name)
        return self._base.read(spec) if values is None else DenseTensor(values, "float32")

    def release(self, spec: TensorSpec) -> None:
        if spec.name not in self._tensors:
            self._base.release(spec)

    def close(self) -> None:
        self._base.close()
