"""What a format that ``convert`` writes has to say for itself."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from paddle_ds.checkpoints.base import Checkpoint, Groups, Progress, StoredTensor
from paddle_ds.config.tensors import TensorSpec


@dataclasses.dataclass(frozen=True)
class Planned:
    """How a tensor will look. ``dtype`` and ``groups`` are those of :class:`StoredTensor`."""

    dtype: str
    groups: Groups | None = None
    #: what the scales of integers are rounded to; they stay float32 in memory
    scale_dtype: str = "float32"

    @property
    def is_integer(self) -> bool:
        return self.dtype in ("int4", "int8")


@dataclasses.dataclass(frozen=True)
class Found:
    """A tensor of the source, as far as it is known before its values are read."""

    stored: StoredTensor
    #: the author of a quantised source left this linear in floating point on purpose
    is_ignored: bool
    #: reads the weight, once: whether every output channel has one scale in all its groups
    has_equal_groups: Callable[[], bool]

    @property
    def is_integer(self) -> bool:
        return self.stored.dtype in ("int4", "int8")

    def as_stored(self) -> Planned:
        return Planned(self.stored.dtype, self.stored.groups)

    def is_per_channel(self) -> bool:
        """Whether its integers, as they are, are those of an INT8 weight with a scale per output channel."""
        return self.is_integer and (self.stored.groups is None or self.has_equal_groups())


class Target(abc.ABC):
    """One format."""

    #: what ``--to`` calls it
    name: ClassVar[str]

    @abc.abstractmethod
    def check(self, source: Checkpoint) -> None:
        """Refuse what the format cannot say, before a tensor is read.

        Raises:
            UnsupportedError: the model, or its tokenizer.
        """

    @abc.abstractmethod
    def plan(self, spec: TensorSpec, found: Found) -> Planned:
        """What a tensor becomes."""

    @abc.abstractmethod
    def write(self, converted: Checkpoint, directory: Path, progress: Progress | None) -> None:
        """Write weights and configuration. ``converted`` hands out tensors as planned; each is read once, in any order.

        Raises:
            OSError: the disk refuses.
        """

    @abc.abstractmethod
    def remarks(self, source: Checkpoint, planned: dict[str, Planned]) -> Iterator[str]:
        """Sentences for people: what this format does to this model beyond the values of its weights."""


def counted(number: int, noun: str) -> str:
    """``1 linear``, ``2 linears``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some_names(names: list[str]) -> str:
    """The first few of many, for a sentence."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name.removesuffix(".weight") for name in names[:3]) + more
