"""The checkpoint that would be served: is it here, is it whole, does it fit?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding
from paddle_ds.errors import CheckpointNotFound, ConfigError, PaddleDSError

if TYPE_CHECKING:
    from paddle_ds.checkpoints.base import Checkpoint
    from paddle_ds.settings import Settings

_TOPIC = "model"


class _NotFetched(Exception):
    """A hub would have to be asked."""


def check(context: Context) -> Iterator[Finding]:
    """Names, shapes, types and lengths of all tensors, and the tokenizer. Values are read when a server loads them.

    Fit is told here for the CPU; for another device by :func:`on_device`, in the process that has loaded Paddle.
    """
    from paddle_ds.cli.checks import fit
    from paddle_ds.devices.cpu import CpuDevice
    from paddle_ds.engine.assets import EMBEDDED_MODEL, resolve_model
    from paddle_ds.text import Tokenizer

    try:
        config = context.engine_config()
    except ConfigError as error:
        yield Finding("config_wrong", _TOPIC, "error", error.message, "correct the file or the option: docs/configuration.md")
        return
    name = resolve_model(config)
    try:
        with closing(_opened(name, context.settings())) as checkpoint:
            what = "the embedded model" if name == str(EMBEDDED_MODEL) else f"{name} ({checkpoint.format})"
            yield Finding("model", _TOPIC, "ok", f"{what} is whole ({len(checkpoint.stored())} tensors)")
            Tokenizer.from_dir(checkpoint.directory)
            if config.device == "cpu":
                yield from fit.check(checkpoint, config, CpuDevice().memory_stats())
    except _NotFetched:
        text = f"{name} is not on this machine; a server would fetch it from the hub when it starts, which was not tried"
        fix = "fetch it first: paddle-ds inspect " + name
        yield Finding("model_not_here", _TOPIC, "warning", text, fix)
    except CheckpointNotFound as error:
        fix = "name a directory with config.json, weights and tokenizer, or a hub name such as org/name"
        yield Finding("model_damaged", _TOPIC, "error", error.message, fix)
    except (PaddleDSError, OSError) as error:
        text = error.message if isinstance(error, PaddleDSError) else f"{name}: {error}"
        yield Finding("model_damaged", _TOPIC, "error", text, "copy or convert the checkpoint again: docs/checkpoints.md")


def on_device(context: Context) -> Iterator[Finding]:
    """Whether the model fits into the memory of the device that it would run on. For a process that has loaded Paddle."""
    from paddle_ds.cli.checks import fit
    from paddle_ds.devices.discovery import open_device
    from paddle_ds.engine.assets import resolve_model

    try:
        config = context.engine_config()
        if config.device == "cpu":
            return
        extra = context.settings().device_profiles
        device = open_device(config.device, Path(extra) if extra else None)
        checkpoint = _opened(resolve_model(config), context.settings())
    except (PaddleDSError, OSError, _NotFetched):
        return  # the checks of the configuration, the model and the device have told
    with closing(checkpoint):
        if "memory_stats" in device.capabilities.ops:
            yield from fit.check(checkpoint, config, device.memory_stats())
        elif config.cache.max_tokens is None and config.cache.max_bytes is None:
            reason = device.capabilities.missing.get("memory_stats", "it has no such capability")
            text = f"{device.name} does not tell its memory ({reason}), so whether the model fits is found out only by loading it"
            yield Finding("memory_unknown", _TOPIC, "warning", text, "give the cache a size: --kv-tokens, or cache.max_bytes")


def device_name(context: Context) -> str:
    """Where the model would run: as asked for, or as the configuration file has it; ``cpu`` where that cannot be read."""
    try:
        return context.engine_config().device
    except ConfigError:
        return context.asked.device or "cpu"


def _opened(name: str, settings: Settings) -> Checkpoint:
    """The checkpoint, where it is on this machine: no hub is asked.

    Raises:
        _NotFetched: it is not.
        CheckpointError: it is damaged, or there is neither such a path nor such a name.
    """
    from paddle_ds.checkpoints import open_checkpoint
    from paddle_ds.checkpoints.hub import fetch
    from paddle_ds.checkpoints.hub_sources import Source

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise _NotFetched

    path = Path(name).expanduser()
    if not path.exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        path = fetch(name, settings, source=Source("", refuse, refuse))
    return open_checkpoint(path if path.exists() else name, settings)
