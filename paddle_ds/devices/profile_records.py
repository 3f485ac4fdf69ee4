"""The keys of a device profile, as records. ``profile.py`` reads them; no paddle here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from paddle_ds.config.engine import CacheDtype

#: how Paddle comes to know the chip: by a plug-in library, or because it was built for it
Mechanism = Literal["custom", "gpu", "xpu"]
MetricName = Literal["memory_used_bytes", "memory_total_bytes", "utilization_ratio", "temperature_celsius", "power_watts"]
#: algorithms of ``paddle.nn.quant.weight_quantize`` whose layouts of INT8 weights are known here
WeightAlgorithm = Literal["llm.int8", "weight_only_int8"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """The value of an environment variable, why it has it, and where that was found."""

    value: str
    why: str
    source: str


@dataclasses.dataclass(frozen=True)
class VersionSet:
    """Versions that ``source``, a page or a file, names together. ``None``: it does not say."""

    paddle: str
    source: str
    plugin: str | None = None
    toolkit: str | None = None
    driver: str | None = None
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Where to begin on this chip. ``memory_fraction`` is a share of its whole memory, as ``memory.device_fraction``."""

    max_running_requests: int
    max_batch_tokens: int
    kv_dtype: CacheDtype
    memory_fraction: float
    why: str


@dataclasses.dataclass(frozen=True)
class WeightLayout:
    """Which algorithms ``weight_quantize`` has for this chip, best first."""

    algorithms: tuple[WeightAlgorithm, ...]
    source: str
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of a record.

    Attributes:
        read: ``text``: an expression with one group, looked for in the record; ``json``: a key of the record.
        factor: from the tool's unit to the one in ``name``.
    """

    name: MetricName
    read: str
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Monitor:
    """The vendor's tool, and how its output is read.

    Attributes:
        command: the program and its arguments.
        alternatives: the same program by other names or paths, tried in this order where the first one is absent.
        record: an expression with a group ``index``, the tool's number of the device. ``text``: what it matches in the output is
            the record of one device (``^`` and ``$`` are ends of lines). ``json``: it matches those keys of the outermost object
            whose values are records.
        metrics: of several with one name the first that is there counts.
    """

    command: tuple[str, ...]
    record: str
    metrics: tuple[Metric, ...]
    source: str
    format: Literal["text", "json"] = "text"
    alternatives: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DeviceProfile:
    """One file. ``name`` is the file's, the rest its keys.

    Attributes:
        type: what Paddle calls the device, as in ``paddle.set_device``.
        rocm: of the devices called ``gpu``, those of a Paddle built for ROCm.
        plugin: pip's name of the plug-in; ``None`` where the chip is built into Paddle.
        visible_devices: variables that choose and order the devices a process sees; the first that is set counts.
        variables, flags: to be set before Paddle is loaded; ``flags`` are those that begin with ``FLAGS_``.
        collective: library that reduces and gathers among several of these.
    """

    name: str
    type: str
    mechanism: Mechanism
    vendor: str
    chips: tuple[str, ...]
    install: str
    visible_devices: tuple[str, ...]
    defaults: Defaults
    docs: tuple[str, ...]
    rocm: bool = False
    plugin: str | None = None
    variables: Mapping[str, Setting] = dataclasses.field(default_factory=dict)
    flags: Mapping[str, Setting] = dataclasses.field(default_factory=dict)
    collective: str | None = None
    versions: tuple[VersionSet, ...] = ()
    weight_layout: WeightLayout | None = None
    monitor: Monitor | None = None

    def environment(self) -> dict[str, str]:
        """Variables and flags to set for a process that will load Paddle, unless the user has set them."""
        return {name: setting.value for name, setting in (*self.variables.items(), *self.flags.items())}
