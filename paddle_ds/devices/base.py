"""``Device``: what the rest of the library may ask of the hardware. Callers ask for a capability, never for a vendor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

#: what a device may be asked for
#: ``int8_gemm``           matmul of int8 by int8 into int32
#: ``llm_int8``            Paddle's ``llm_int8_linear`` (activations quantised inside, outliers apart)
#: ``weight_only_int8``    Paddle's ``weight_only_linear`` with INT8 weights
#: ``paged_attention``     an attention operator of its own over a paged cache
#: ``graph_capture``       a step can be recorded once and replayed
#: ``memory_stats``        it tells its total and free memory
#: ``streams``             work is queued on streams that events can order
#: ``collectives``         several of them can reduce and gather
Capability = Literal[
    "int8_gemm",
    "llm_int8",
    "weight_only_int8",
    "paged_attention",
    "graph_capture",
    "memory_stats",
    "streams",
    "collectives",
]


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a device offers beyond plain Paddle operators."""

    ops: frozenset[Capability] = frozenset()
    #: types a matrix product can have there, such as ``float32``
    dtypes: frozenset[str] = frozenset()
    #: instruction sets or feature names, for reports
    features: tuple[str, ...] = ()
    #: capability -> why the device does not have it, as far as that is known
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MemoryStats:
    """Bytes of the memory that models are placed in."""

    total_bytes: int
    available_bytes: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that keeps a device from being used, or from being used well.

    Attributes:
        level: ``error`` where it cannot be used at all.
        fix: a command or a sentence.
    """

    level: Literal["warning", "error"]
    text: str
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class DeviceOperator:
    """An operator that a device brings along; ``function`` has the signature of the rows in ``kernels/registry.py``."""

    #: shown wherever it is told what runs
    name: str
    function: Any


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None: ...
    def query(self) -> bool: ...


class Stream(Protocol):
    """Work of a device in the order in which it was given."""

    def synchronize(self) -> None: ...
    def record_event(self, event: Any = None) -> Event: ...
    def wait_event(self, event: Any) -> None: ...


class Device(Protocol):
    """One place a model can run."""

    @property
    def name(self) -> str:
        """As the user writes it: ``cpu``, ``npu:0``."""

    @property
    def type(self) -> str:
        """``cpu``, ``gpu``, ``npu`` …"""

    @property
    def index(self) -> int:
        """Among those that are visible to this process."""

    @property
    def capabilities(self) -> Capabilities: ...

    def activate(self) -> None:
        """Make it Paddle's current device."""

    def memory_stats(self) -> MemoryStats:
        """Of the memory that weights and cache are placed in."""

    def synchronize(self, timeout_s: float | None = None) -> None:
        """Wait until everything given to it is done.

        Args:
            timeout_s: give up after this long, where the device has events that can be asked; ``None``: wait for ever.

        Raises:
            DeviceTimeout: it took longer.
            DeviceLost: it is gone, or has failed for good.
        """

    def empty_cache(self) -> None:
        """Give memory that Paddle keeps for later back to the device."""

    def make_stream(self) -> Stream:
        """
        Raises:
            UnsupportedError: the device has no streams.
        """

    def make_event(self) -> Event:
        """
        Raises:
            UnsupportedError: the device has no streams.
        """

    def quantized_weight(self, values: Any, algorithm: str) -> Any:
        """INT8 weight [N, K] (NumPy) in the layout that ``algorithm`` (``llm.int8``, ``weight_only_int8``) has on this device.

        Raises:
            UnsupportedError: there is no such layout here.
        """

    def operators(self) -> Mapping[str, Sequence[DeviceOperator]]:
        """Operators of its own, best first, by their names in ``kernels/registry.py``."""

    def preflight(self) -> Sequence[Problem]:
        """What will go wrong, before anything is loaded."""

    def metrics(self) -> Mapping[str, float]:
        """Figures for dashboards, such as ``memory_used_bytes``; empty where the device tells nothing."""
