"""``EngineConfig``: composed, frozen, every field with its unit in its name; read from YAML, flags or Python."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from paddle_ds.config.memory import MemoryConfig
from paddle_ds.errors import ConfigError

Quant = Literal["auto", "w8a8", "w8a16", "none"]
#: what a KV cache holds; ``int8`` has one scale per token and head (or head, where the checkpoint has static ones), for keys and
#: for values: ``x = q * scale``
KvDtype = Literal["float32", "bfloat16", "int8"]
CacheDtype = Literal["auto", "float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """The paged KV cache."""

    #: tokens of one block
    block_tokens: int = 16
    #: tokens the whole cache holds; ``None``: as many as the memory plan allows, at most every request at full length
    max_tokens: int | None = None
    #: bytes the cache takes where ``max_tokens`` is not given; ``None``: a share of free memory
    max_bytes: int | None = None
    #: what keys and values are kept as; ``auto``: int8 for a checkpoint made for that, else bfloat16 for one made in 16 bits,
    #: else float32
    dtype: CacheDtype = "auto"


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """Admission and batching."""

    #: requests that are computed at the same time
    max_running_requests: int = 64
    #: requests that may wait; one more is answered ``server_overloaded``
    max_waiting_requests: int = 2048
    #: tokens of one step, prompt chunks and decoded tokens together
    max_batch_tokens: int = 512
    #: prompt tokens of a step in which other requests decode, plus one for each of those: so many keep the step within
    #: three times a step of decoding alone, so that a long prompt does not make running answers stutter
    prompt_tokens_beside_decode: int = 20


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Everything the engine needs to know before it loads a checkpoint."""

    #: directory of the checkpoint, or a hub name; empty: the embedded model
    model: str = ""
    #: name under which the model is served; empty: the directory's name
    served_name: str = ""
    #: ``auto``: as stored, and ``w8a8`` for a checkpoint that is not quantised
    quant: Quant = "auto"
    #: ``cpu`` or a device type with an index, such as ``npu:0``
    device: str = "cpu"
    #: longest prompt plus answer in tokens; ``None``: what the model was made for
    max_context_tokens: int | None = None
    #: kernel threads; ``None``: the cores this process may use
    num_threads: int | None = None
    #: seconds after which a step on a device other than the CPU has failed: the engine is started again
    step_timeout_s: int = 120
    #: turn silent fallbacks into errors
    strict: bool = False
    cache: CacheConfig = dataclasses.field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = dataclasses.field(default_factory=SchedulerConfig)
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        if self.quant not in typing.get_args(Quant):
            raise ConfigError(f"quant is {self.quant!r}; expected one of {', '.join(typing.get_args(Quant))}")
        if self.cache.dtype not in typing.get_args(CacheDtype):
            raise ConfigError(f"cache.dtype is {self.cache.dtype!r}; expected one of {', '.join(typing.get_args(CacheDtype))}")
        for name, value in _numbers(self):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 1")
        if self.scheduler.max_batch_tokens < self.scheduler.max_running_requests:
            raise ConfigError(
                f"scheduler.max_batch_tokens is {self.scheduler.max_batch_tokens}, fewer than max_running_requests, "
                f"{self.scheduler.max_running_requests}: a step must hold one token of each running request"
            )

    @classmethod
    def from_yaml(cls, path: Path) -> EngineConfig:
        """Read a file whose keys are the fields of this class.

        Raises:
            ConfigError: unreadable, not YAML, an unknown key, or a value of the wrong type.
        """
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # not UTF-8, or a date like 2024-99-99
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
        return typing.cast(EngineConfig, from_mapping(cls, {} if raw is None else raw, str(path)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that :func:`from_mapping` reads back to an equal record."""
        return dataclasses.asdict(self)


def _numbers(config: EngineConfig) -> list[tuple[str, int | None]]:
    return [
        ("max_context_tokens", config.max_context_tokens),
        ("num_threads", config.num_threads),
        ("step_timeout_s", config.step_timeout_s),
        ("cache.block_tokens", config.cache.block_tokens),
        ("cache.max_tokens", config.cache.max_tokens),
        ("cache.max_bytes", config.cache.max_bytes),
        ("scheduler.max_running_requests", config.scheduler.max_running_requests),
        ("scheduler.max_waiting_requests", config.scheduler.max_waiting_requests),
        ("scheduler.max_batch_tokens", config.scheduler.max_batch_tokens),
        ("scheduler.prompt_tokens_beside_decode", config.scheduler.prompt_tokens_beside_decode),
    ]


def from_mapping(cls: type, raw: Any, where: str) -> Any:
    """Build the dataclass ``cls`` from nested mappings, refusing unknown keys and wrong types."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {type(raw).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = [key for key in raw if key not in hints]
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(hints)}")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            values[key] = from_mapping(typing.cast(type, hint), value, f"{where}: {key}")
        else:
            values[key] = _checked(value, hint, f"{where}: {key}")
    return cls(**values)


def _checked(value: Any, hint: Any, where: str) -> Any:
    allowed: tuple[Any, ...] = (hint,)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        allowed = typing.get_args(hint)
    for option in allowed:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif typing.get_origin(option) is Mapping:
            if isinstance(value, Mapping):
                kind = typing.get_args(option)[1]
                return {_checked(key, str, where): _checked(item, kind, f"{where}: {key}") for key, item in value.items()}
        elif option is type(None):
            if value is None:
                return None
        elif isinstance(value, option) and not (isinstance(value, bool) and option is not bool):
            return value
    raise ConfigError(f"{where}: {value!r} is wrong; expected {_readable(hint)}")


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is Mapping:
        return "a mapping"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_readable(option) for option in typing.get_args(hint))
    return "nothing" if hint is type(None) else str(getattr(hint, "__name__", hint))
