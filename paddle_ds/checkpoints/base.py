"""What every checkpoint format turns into: an inventory, and one tensor at a time in canonical form.

Canonical means: Hugging Face's tensor names, linear weights as ``[out, in]``, one dense array or one INT8 weight with a
scale per output channel.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from paddle_ds.checkpoints.dtypes import Array, Float32Array, Int8Array, widen
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import TensorSpec

#: called with what is being worked on (a tensor or file name), bytes done and bytes in all
Progress = Callable[[str, int, int], None]

C = TypeVar("C", bound="Checkpoint")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One line of the inventory. ``nbytes`` counts what is on disk, a weight's scales included."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path


@dataclasses.dataclass(frozen=True, eq=False)
class DenseTensor:
    """A tensor as stored. ``values`` may be a read-only, transposed view of the file; bfloat16 is held as uint16."""

    values: Array
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def to_float32(self) -> Float32Array:
        """C-contiguous float32 of the same shape: a new array, or ``values`` itself where it already is that."""
        return widen(self.values, self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Int8Weight:
    """A symmetric INT8 weight: ``values`` int8 ``[out, in]`` times ``scales`` float32 ``[out]``."""

    values: Int8Array
    scales: Float32Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def to_float32(self) -> Float32Array:
        """The weight these integers stand for, float32 ``[out, in]``."""
        wide = self.values.astype(np.float32, order="C")
        wide *= self.scales[:, None]
        return wide


Weight = DenseTensor | Int8Weight


class Checkpoint(abc.ABC):
    """An opened checkpoint whose inventory has been verified against its ``config``. Use as a context manager."""

    #: how the files are laid out, such as ``huggingface``
    format: str
    directory: Path
    config: ModelConfig

    @abc.abstractmethod
    def stored(self) -> Mapping[str, StoredTensor]:
        """Every tensor of ``model_specs(config)`` by canonical name, in that order."""

    @abc.abstractmethod
    def read(self, spec: TensorSpec) -> Weight:
        """One tensor of the model, of shape ``spec.shape``; nothing of it is kept here.

        Raises:
            TensorNotFiniteError: it (or its scale) holds NaN or infinity, or a scale is not above zero.
        """

    @abc.abstractmethod
    def ignored(self) -> frozenset[str]:
        """Canonical names of linear weights that the author of a quantised checkpoint deliberately left alone.

        ``lm_head.weight`` may be among them also where the head is tied and has no tensor of its own.
        """

    @abc.abstractmethod
    def release(self, spec: TensorSpec) -> None:
        """Give the memory behind a tensor that has been read and converted back to the system. Views stay valid."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the files. Views handed out stay valid."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
