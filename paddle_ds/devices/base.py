"""``Device``: what the rest of the library may ask of the hardware. Callers ask for a capability, never for a vendor."""

from __future__ import annotations

import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a device offers beyond plain Paddle operators."""

    #: operator kinds with a native implementation, such as ``int8_gemm`` or ``paged_attention``
    ops: frozenset[str] = frozenset()
    #: instruction sets or feature names, for reports
    features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MemoryStats:
    """Bytes of the memory that models are placed in."""

    total_bytes: int
    available_bytes: int


class Device(Protocol):
    """One place a model can run."""

    @property
    def name(self) -> str:
        """As the user writes it: ``cpu``, ``npu:0``."""

    @property
    def capabilities(self) -> Capabilities: ...

    def activate(self) -> None:
        """Make it Paddle's current device."""

    def memory_stats(self) -> MemoryStats: ...
