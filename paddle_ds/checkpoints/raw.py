"""Containers of named arrays, and several of them as one. Nothing here knows what the names mean."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from paddle_ds.checkpoints.dtypes import Array
from paddle_ds.errors import CorruptFileError


@dataclasses.dataclass(frozen=True)
class RawTensor:
    """A tensor as a file has it: its own name, its own orientation."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path


class TensorFile(abc.ABC):
    """One opened file. ``tensors`` is complete and consistent with the file's length once it is constructed."""

    path: Path
    tensors: Mapping[str, RawTensor]

    @abc.abstractmethod
    def array(self, name: str) -> Array:
        """C-contiguous values, a view of the file where that is possible."""

    @abc.abstractmethod
    def release(self, name: str) -> None:
        """Tell the system that the pages behind a tensor will not be needed soon."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the file; views that are still in use keep it mapped."""


class TensorFiles:
    """Shards as one container."""

    def __init__(self, files: Iterable[TensorFile]) -> None:
        """Take over ``files``.

        Raises:
            CorruptFileError: two of them hold a tensor of the same name.
        """
        self._files = list(files)
        self._owner: dict[str, TensorFile] = {}
        self.tensors: dict[str, RawTensor] = {}
        for file in self._files:
            for name, tensor in file.tensors.items():
                if name in self._owner:
                    other = self._owner[name].path
                    raise CorruptFileError(f"{file.path}: tensor '{name}' is also in {other.name}; expected it once")
                self._owner[name] = file
                self.tensors[name] = tensor

    def array(self, name: str) -> Array:
        return self._owner[name].array(name)

    def release(self, name: str) -> None:
        self._owner[name].release(name)

    def close(self) -> None:
        for file in self._files:
            file.close()
