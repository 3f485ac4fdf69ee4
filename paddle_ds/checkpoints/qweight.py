"""What GPTQ and AWQ checkpoints have in common: ``<linear>.qweight`` and, beside it, ``qzeros`` and ``scales``.

Which linears are quantised, the files say: those that have a ``qweight``. The rest are as in a plain Hugging Face checkpoint.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from paddle_ds.checkpoints.layout import HEAD, FileCheckpoint, Packing, Source
from paddle_ds.checkpoints.raw import RawTensor, TensorFiles
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, TensorSpec, model_specs
from paddle_ds.errors import ConfigMismatchError, UnexpectedTensorError, UnsupportedError

QWEIGHT = ".qweight"
_BIAS = ".bias"


@dataclasses.dataclass(frozen=True)
class GroupShape:
    """How many bits an integer has and how many inputs share a scale; ``None``: all of them."""

    bits: int
    group_size: int | None

    def size(self, num_in: int) -> int:
        """Inputs of a group of a linear of ``num_in`` inputs."""
        return min(self.group_size or num_in, num_in)

    def count(self, num_in: int) -> int:
        """Groups of a linear of ``num_in`` inputs."""
        return -(-num_in // self.size(num_in))


class QweightCheckpoint(FileCheckpoint):
    """See the module's text."""

    #: ``quantization_config.quant_method``
    method: ClassVar[str]

    def __init__(self, directory: Path, config: ModelConfig, files: TensorFiles) -> None:
        assert config.quantization is not None, "claims() is asked first"
        fields = QuantizationFields(config.quantization, f"{directory / 'config.json'}: quantization_config")
        self._linears = {s.name for s in model_specs(config) if s.role in (Role.LINEAR, Role.HEAD)}
        self.read_scheme(fields)
        super().__init__(directory, config, files)

    @classmethod
    def claims(cls, config: ModelConfig, files: TensorFiles) -> bool:
        return config.quantization is not None and config.quantization.get("quant_method") == cls.method

    @abc.abstractmethod
    def read_scheme(self, fields: QuantizationFields) -> None:
        """Interpret the ``quantization_config``.

        Raises:
            UnsupportedError: it asks for what is not implemented.
            ConfigMismatchError: a field makes no sense.
        """

    @abc.abstractmethod
    def packing(self, module: str) -> Packing:
        """How the weight of a linear that has a ``qweight`` is put together."""

    def locate(self, spec: TensorSpec) -> Source:
        module = spec.name.removesuffix(".weight")
        if spec.name in self._linears and module + QWEIGHT in self._files.tensors:
            return Source.packed(self.packing(module))
        return Source(spec.name)

    def ignored(self) -> frozenset[str]:
        names = {name for name in self._linears if self._sources[name].packing is None}
        return frozenset(names | {HEAD} if self.config.tie_word_embeddings else names)

    def is_ignorable(self, tensor: RawTensor) -> bool:
        if tensor.name.endswith(_BIAS) and tensor.name.removesuffix(_BIAS) + ".weight" in self._linears:
            # quantisers give every linear a bias, also where the architecture has none; anything but zeros would be lost
            if self._files.array(tensor.name).any():
                raise UnexpectedTensorError(
                    f"{tensor.file}: tensor '{tensor.name}' is not zero; "
                    f"{self.config.architecture} as config.json describes it has no such bias"
                )
            return True
        return super().is_ignorable(tensor)


class QuantizationFields:
    """Typed access to a ``quantization_config``."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self._raw = raw
        self._where = where

    def get(self, name: str) -> Any:
        return self._raw.get(name)

    def one_of(self, name: str, *allowed: object, default: object = None) -> Any:
        """The value of a field that must be one of ``allowed``; ``default`` where it is absent or null."""
        value = self._raw.get(name)
        value = default if value is None else value
        # 4 == 4.0 and 1 == True, but they are not the same field
        if not any(value == choice and type(value) is type(choice) for choice in allowed):
            raise self.unsupported(f"{name} is {value!r}", " and ".join(map(repr, allowed)))
        return value

    def group_size(self) -> int | None:
        """Inputs that share a scale; ``None``, stored as -1, for all of a channel."""
        value = self._raw.get("group_size")
        if type(value) is not int or (value < 1 and value != -1):
            raise self.mismatch(f"group_size is {value!r}; expected a whole number of at least 1, or -1")
        return None if value == -1 else value

    def unsupported(self, found: str, have: str) -> UnsupportedError:
        return UnsupportedError(f"{self._where}: {found}; have: {have}")

    def mismatch(self, complaint: str) -> ConfigMismatchError:
        return ConfigMismatchError(f"{self._where}: {complaint}")
