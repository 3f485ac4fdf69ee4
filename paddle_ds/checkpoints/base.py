"""What every checkpoint format turns into: an inventory, and one tensor at a time in canonical form.

Canonical means: Hugging Face's tensor names, linear weights as ``[out, in]``, one dense array, one INT8 weight with a
scale per output channel, or one weight of 4 or 8 bits with a scale per group of inputs.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints.dtypes import Array, Float32Array, Int8Array, widen
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import TensorSpec

#: called with what is being worked on (a tensor or file name), bytes done and bytes in all
Progress = Callable[[str, int, int], None]

C = TypeVar("C", bound="Checkpoint")


@dataclasses.dataclass(frozen=True)
class Groups:
    """How the inputs of a :class:`GroupedWeight` share scales. ``size`` is the number of inputs where all share one."""

    size: int
    #: scales of one output channel
    count: int
    has_zero_points: bool = False
    has_index: bool = False


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One line of the inventory. ``nbytes`` counts what is on disk, a weight's scales included.

    ``dtype`` is how canonical values look: ``int4`` for packed nibbles. ``groups`` is there for a :class:`GroupedWeight`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path
    groups: Groups | None = None


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


@dataclasses.dataclass(frozen=True, eq=False)
class GroupedWeight:
    """Integers that share a scale with the others of their output channel and group of inputs.

    ``w[o, k] = (values[o, k] - zero_points[o, g]) * scales[o, g]`` with ``g = group_index[k]``, without one ``k // group_size``.

    Attributes:
        values: int8 ``[out, in]``, in ``-8..7`` for 4 bits.
        scales: float32 ``[out, G]``, ``G = ceil(in / group_size)``.
        zero_points: int16 ``[out, G]`` on the scale of ``values``; ``None`` where all are 0.
        group_index: int32 ``[in]`` where the groups are not contiguous (GPTQ's activation order).
        bits: 4 or 8.
    """

    values: Int8Array
    scales: Float32Array
    zero_points: npt.NDArray[np.int16] | None
    group_index: npt.NDArray[np.int32] | None
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def groups(self) -> npt.NDArray[np.int32]:
        """The group of each input, int32 ``[in]``."""
        if self.group_index is not None:
            return self.group_index
        return np.arange(self.values.shape[1], dtype=np.int32) // np.int32(self.group_size)

    def to_float32(self) -> Float32Array:
        """The weight these integers stand for, float32 ``[out, in]``."""
        groups = self.groups()
        wide = self.values.astype(np.float32, order="C")
        if self.zero_points is not None:
            wide -= self.zero_points.astype(np.float32)[:, groups]
        wide *= self.scales[:, groups]
        return wide


Weight = DenseTensor | Int8Weight | GroupedWeight


@dataclasses.dataclass(frozen=True, eq=False)
class KvScales:
    """Fixed scales of one layer's INT8 cache, float32 ``[kv heads]`` each."""

    key: Float32Array
    value: Float32Array


@dataclasses.dataclass(frozen=True, eq=False)
class KvScheme:
    """A checkpoint made for an INT8 cache. ``scales``: one entry a layer, or ``None`` where each token finds its own."""

    scales: tuple[KvScales, ...] | None


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
    def schemes(self) -> Mapping[str, Scheme]:
        """Prefix of every linear layer (and head) whose weight is quantised -> what it was made to run as."""

    def raw_config(self) -> dict[str, Any]:
        """The fields of ``config.json`` as found; what ``config`` was read from."""
        raw: dict[str, Any] = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        return raw

    def kv_cache(self) -> KvScheme | None:
        """The INT8 cache the checkpoint was made for; ``None`` where it says nothing of the cache."""
        return None

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
