"""The base of all formats whose tensors lie in files: their names are the subclass's matter, checking is here."""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, Int8Weight, StoredTensor, Weight
from paddle_ds.checkpoints.dtypes import FLOATS, Array, Float32Array, count_not_finite, widen
from paddle_ds.checkpoints.raw import RawTensor, TensorFiles
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import TensorSpec, model_specs
from paddle_ds.errors import (
    ConfigMismatchError,
    CorruptFileError,
    MissingTensorError,
    TensorDtypeError,
    TensorNotFiniteError,
    TensorShapeError,
    UnexpectedTensorError,
)

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class Packing(Protocol):
    """How a weight that lies in several tensors is put together; a format has one class for each way it knows."""

    @property
    def scheme(self) -> Scheme:
        """What the weight was made to run as."""

    def parts(self) -> tuple[str, ...]:
        """Names of its tensors in the files, the largest first."""

    def verify(self, spec: TensorSpec, files: FileCheckpoint) -> StoredTensor:
        """Its line of the inventory, after shapes and types were checked; values are, as they are read.

        Raises:
            CheckpointError: a tensor is missing or has another shape or type.
        """

    def read(self, spec: TensorSpec, files: FileCheckpoint) -> Weight:
        """The weight, verified."""


@dataclasses.dataclass(frozen=True)
class ChannelPacking:
    """int8 ``[out, in]`` and a scale per output channel, ``[out]`` or ``[out, 1]``."""

    values: str
    scales: str
    scheme: Scheme = "w8a8"

    def parts(self) -> tuple[str, ...]:
        return self.values, self.scales

    def verify(self, spec: TensorSpec, files: FileCheckpoint) -> StoredTensor:
        values = files.require(self.values, spec, "int8", spec.shape)
        scales = files.require(self.scales, spec)
        num_out = spec.shape[0]
        if scales.shape not in ((num_out,), (num_out, 1)):
            raise shape_error(scales, f"{[num_out]} or {[num_out, 1]}")
        files.float_type(scales)
        return StoredTensor(spec.name, spec.shape, "int8", values.nbytes + scales.nbytes, values.file)

    def read(self, spec: TensorSpec, files: FileCheckpoint) -> Weight:
        return Int8Weight(files.array(self.values), files.scales(self.scales).reshape(-1))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a canonical tensor is: its name in the files, or how it is put together."""

    raw: str
    #: stored as ``[in, out]``
    transposed: bool = False
    packing: Packing | None = None

    @classmethod
    def packed(cls, packing: Packing) -> Source:
        return cls(packing.parts()[0], packing=packing)

    @property
    def parts(self) -> tuple[str, ...]:
        return self.packing.parts() if self.packing is not None else (self.raw,)


class FileCheckpoint(Checkpoint):
    """A checkpoint over :class:`TensorFiles`. The whole inventory is verified on construction."""

    #: stored type -> the floating-point type it means
    float_types: ClassVar[Mapping[str, str]] = {name: name for name in FLOATS}

    def __init__(self, directory: Path, config: ModelConfig, files: TensorFiles) -> None:
        """Locate and verify every tensor of ``model_specs(config)``; nothing else may be in the files.

        Raises:
            ConfigMismatchError: the files hold another number of layers than ``config.json`` says.
            MissingTensorError, UnexpectedTensorError, TensorShapeError, TensorDtypeError: see their names.
            UnsupportedError: a quantisation scheme that is not implemented.
        """
        self.directory = directory
        self.config = config
        self._files = files
        self._check_num_layers()
        self._sources: dict[str, Source] = {}
        self._stored: dict[str, StoredTensor] = {}
        for spec in model_specs(config):
            source = self.locate(spec)
            self._sources[spec.name] = source
            self._stored[spec.name] = self._verified(spec, source)
        self._refuse_the_rest()

    @classmethod
    @abc.abstractmethod
    def claims(cls, config: ModelConfig, files: TensorFiles) -> bool:
        """Whether these files are in this format, by what ``config.json`` says and how tensors are called."""

    @abc.abstractmethod
    def locate(self, spec: TensorSpec) -> Source:
        """Where ``spec`` must be in this format. Called once per tensor, before ``self`` is complete."""

    def is_ignorable(self, tensor: RawTensor) -> bool:
        """Whether a tensor that no spec asks for does no harm."""
        if tensor.name.endswith("rotary_emb.inv_freq"):
            return True
        # a tied head is the embedding; some writers store it a second time
        if tensor.name == HEAD and self.config.tie_word_embeddings:
            expected = (self.config.vocab_size, self.config.hidden_size)
            if tensor.shape != expected:
                raise TensorShapeError(
                    f"{tensor.file}: tensor '{HEAD}': found {list(tensor.shape)}; expected {list(expected)}, the tied embedding's"
                )
            return True
        return False

    def stored(self) -> Mapping[str, StoredTensor]:
        return self._stored

    def schemes(self) -> Mapping[str, Scheme]:
        found = ((name, source.packing) for name, source in self._sources.items())
        return {name.removesuffix(".weight"): packing.scheme for name, packing in found if packing is not None}

    def ignored(self) -> frozenset[str]:
        return frozenset()

    def read(self, spec: TensorSpec) -> Weight:
        source = self._sources[spec.name]
        if source.packing is not None:
            return source.packing.read(spec, self)
        values = self._files.array(source.raw)
        dtype = self._stored[spec.name].dtype
        self._check_finite(source.raw, values, dtype)
        return DenseTensor(values.T if source.transposed else values, dtype)

    def release(self, spec: TensorSpec) -> None:
        for raw in self._sources[spec.name].parts:
            self._files.release(raw)

    def close(self) -> None:
        self._files.close()

    def array(self, raw: str) -> Array:
        """Values of a tensor of the files, as stored."""
        return self._files.array(raw)

    def scales(self, raw: str) -> Float32Array:
        """Scales of a quantised weight as float32, in the shape they are stored in.

        Raises:
            TensorNotFiniteError, CorruptFileError: one is NaN, infinite or below zero.
        """
        values = self._files.array(raw)
        dtype = self.float_type(self._files.tensors[raw])
        self._check_finite(raw, values, dtype)
        scales = widen(values, dtype)
        if scales.size and scales.min() < 0:
            raise self.corrupt(raw, f"found a scale of {scales.min()}; expected none below zero")
        return scales

    def corrupt(self, raw: str, complaint: str) -> CorruptFileError:
        """The error for values of a tensor that make no sense."""
        return CorruptFileError(f"{self._files.tensors[raw].file}: tensor '{raw}': {complaint}")

    def _check_finite(self, name: str, values: Array, dtype: str) -> None:
        bad = count_not_finite(values, dtype)
        if bad:
            file = self._files.tensors[name].file
            raise TensorNotFiniteError(
                f"{file}: tensor '{name}': found {bad} NaN or infinite of {values.size} values; expected none"
            )

    def _check_num_layers(self) -> None:
        layers = {int(match[1]) for name in self._files.tensors if (match := _LAYER.search(name))}
        num_stored = max(layers, default=-1) + 1
        if layers and num_stored != self.config.num_layers:
            raise ConfigMismatchError(
                f"{self.directory / 'config.json'}: num_hidden_layers is {self.config.num_layers}; "
                f"the files hold {num_stored} layers"
            )

    def _verified(self, spec: TensorSpec, source: Source) -> StoredTensor:
        if source.packing is not None:
            return source.packing.verify(spec, self)
        tensor = self.require(source.raw, spec)
        expected = spec.shape[::-1] if source.transposed else spec.shape
        if tensor.shape != expected:
            raise shape_error(tensor, list(expected))
        return StoredTensor(spec.name, spec.shape, self.float_type(tensor), tensor.nbytes, tensor.file)

    def float_type(self, tensor: RawTensor) -> str:
        """The type of a tensor that must be floating point."""
        found = self.float_types.get(tensor.dtype)
        if found is None:
            expected = ", ".join(FLOATS)
            raise TensorDtypeError(f"{tensor.file}: tensor '{tensor.name}': found {tensor.dtype}; expected one of {expected}")
        return found

    def require(self, raw: str, spec: TensorSpec, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> RawTensor:
        """A tensor of the files that ``spec`` needs, of this type and shape where they are given."""
        tensor = self._files.tensors.get(raw)
        if tensor is None:
            hint = ""
            if spec.name == HEAD:
                hint = "; tie_word_embeddings in config.json is false, so the head needs a tensor of its own"
            raise MissingTensorError(
                f"{self.directory}: tensor '{raw}' is missing; "
                f"expected {list(spec.shape)} of {spec.role.value} '{spec.name}'{hint}"
            )
        if shape is not None and tensor.shape != shape:
            raise shape_error(tensor, list(shape))
        if dtype is not None and tensor.dtype != dtype:
            raise TensorDtypeError(f"{tensor.file}: tensor '{raw}': found {tensor.dtype}; expected {dtype}")
        return tensor

    def _refuse_the_rest(self) -> None:
        asked = {name for source in self._sources.values() for name in source.parts}
        extra = [t for name, t in self._files.tensors.items() if name not in asked and not self.is_ignorable(t)]
        if extra:
            more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
            raise UnexpectedTensorError(
                f"{extra[0].file}: tensor '{extra[0].name}' {list(extra[0].shape)}{more} is not part of "
                f"{self.config.architecture} as {self.directory / 'config.json'} describes it"
            )


def shape_error(tensor: RawTensor, expected: object) -> TensorShapeError:
    return TensorShapeError(f"{tensor.file}: tensor '{tensor.name}': found {list(tensor.shape)}; expected {expected}")
