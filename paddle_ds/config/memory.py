"""``MemoryConfig``: the section ``memory:`` of an engine's configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from paddle_ds.errors import ConfigError

FlagValue = bool | int | float | str


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """How memory is used, apart from the cache. What took effect is told for each flag: docs/memory.md."""

    #: Paddle's flags by name, with ``FLAGS_`` before it or without. Each is set, and tried out
    flags: Mapping[str, FlagValue] = dataclasses.field(default_factory=dict)
    #: 2 MB pages for packed weights on the CPU. ``None``: asked for, and nothing is said; ``true``: the same, and what the system
    #: gives is reported; ``false``: forbidden to the whole process
    huge_pages: bool | None = None
    #: give what loading has freed back to the system
    trim_after_load: bool = True
    #: largest share of the device's whole memory that is used, above 0 and up to 1; ``None``: all that is free
    device_fraction: float | int | None = None
    #: bytes of the free memory that are left to others
    reserve_bytes: int = 0

    def __post_init__(self) -> None:
        for name, value in self.flags.items():
            if not isinstance(name, str) or not isinstance(value, FlagValue):
                expected = "a flag's name, and true, false, a number or text"
                raise ConfigError(f"memory.flags: {name!r}: {value!r} is wrong; expected {expected}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"memory.flags: {name!r}: {value!r} is wrong; expected a finite number")
        share = self.device_fraction
        if share is not None and (isinstance(share, bool) or not 0 < share <= 1):
            raise ConfigError(f"memory.device_fraction is {share!r}; expected a number above 0 and at most 1")
        if isinstance(self.reserve_bytes, bool) or self.reserve_bytes < 0:
            raise ConfigError(f"memory.reserve_bytes is {self.reserve_bytes!r}; expected a whole number of at least 0")

    def wanted(self) -> dict[str, FlagValue]:
        """What ``devices.flags.apply_flags`` is asked for: the flags, and the system's levers that were named."""
        wanted = dict(self.flags)
        if self.huge_pages is not None:
            wanted["huge_pages_weights"] = self.huge_pages
        return wanted

    def usable_bytes(self, total_bytes: int, available_bytes: int) -> int:
        """Bytes that may be used of a memory of ``total_bytes``, ``available_bytes`` of which are free.

        >>> MemoryConfig(device_fraction=0.5, reserve_bytes=10).usable_bytes(100, 80)
        30
        """
        usable = available_bytes
        if self.device_fraction is not None:
            usable = min(usable, int(total_bytes * self.device_fraction) - (total_bytes - available_bytes))
        return max(0, min(usable, available_bytes - self.reserve_bytes))
