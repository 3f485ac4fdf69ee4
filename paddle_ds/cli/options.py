"""Options that several commands share."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from paddle_ds.config.engine import CacheConfig, CacheDtype, EngineConfig, Quant, SchedulerConfig
from paddle_ds.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_ENGINE_OPTIONS = (
    click.option("--model", default="", help="Directory of a checkpoint or a hub name. Default: the embedded model."),
    click.option("--served-name", default="", help="Name under which the model is served. Default: the directory's name."),
    click.option(
        "--quant",
        type=click.Choice(typing.get_args(Quant)),
        help="auto: as stored, and w8a8 for a checkpoint that is not quantised.  [default: auto]",
    ),
    click.option("--device", help="Where to run: cpu, or a type and an index such as npu:0.  [default: cpu]"),
    click.option("--max-context-tokens", type=click.IntRange(1), help="Longest prompt plus answer. Default: the model's own."),
    click.option("--kv-tokens", type=click.IntRange(1), help="Tokens the KV cache holds. Default: from the memory plan."),
    click.option(
        "--kv-dtype",
        type=click.Choice(typing.get_args(CacheDtype)),
        help="auto: what the checkpoint was made for, else bfloat16 where it has 16 bits, else float32.  [default: auto]",
    ),
    click.option("--max-running-requests", type=click.IntRange(1), help="Requests computed at the same time.  [default: 64]"),
    click.option("--max-batch-tokens", type=click.IntRange(1), help="Tokens of one step.  [default: 512]"),
    click.option("--num-threads", type=click.IntRange(1), help="Kernel threads. Default: the usable cores."),
    click.option("--strict", is_flag=True, default=None, help="Turn silent fallbacks into errors."),
    click.option(
        "--config", type=click.Path(path_type=Path), help="YAML file with an engine configuration; options win over it."
    ),
)


def engine_options(function: F) -> F:
    """Add the options that make an ``EngineConfig``."""
    for option in reversed(_ENGINE_OPTIONS):
        function = option(function)
    return function


def engine_config(settings: Settings, config: Path | None = None, **given: Any) -> EngineConfig:
    """The configuration file, then the environment, then the options, each over the one before.

    Raises:
        ConfigError: the file or a value is wrong.
    """
    base = EngineConfig.from_yaml(config) if config else EngineConfig()
    if settings.num_threads is not None:
        base = dataclasses.replace(base, num_threads=settings.num_threads)
    if settings.strict:
        base = dataclasses.replace(base, strict=True)
    chosen = {name: value for name, value in given.items() if value not in (None, "")}
    cache = _replace(
        base.cache, CacheConfig, {"max_tokens": chosen.pop("kv_tokens", None), "dtype": chosen.pop("kv_dtype", None)}
    )
    scheduler = _replace(
        base.scheduler,
        SchedulerConfig,
        {name: chosen.pop(name, None) for name in ("max_running_requests", "max_batch_tokens")},
    )
    return dataclasses.replace(base, cache=cache, scheduler=scheduler, **chosen)


T = TypeVar("T", CacheConfig, SchedulerConfig)


def _replace(record: T, kind: type[T], values: dict[str, Any]) -> T:
    return dataclasses.replace(record, **{name: value for name, value in values.items() if value is not None})
