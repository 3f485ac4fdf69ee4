"""``paddle-ds inspect``: what is in a checkpoint and what it will take, without loading it (and without Paddle)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from paddle_ds import settings
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.cli.options import engine_config, engine_options
from paddle_ds.config.engine import EngineConfig
from paddle_ds.config.recipe import Recipe
from paddle_ds.devices import environment
from paddle_ds.devices.base import MemoryStats
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.engine.assets import recipe_for, resolve_model
from paddle_ds.errors import PaddleDSError
from paddle_ds.runtime.memory_plan import MemoryPlan, make_plan, readable_bytes


@click.command()
@click.argument("path", default="")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option("--tensors/--no-tensors", default=False, help="List every tensor.")
@engine_options
def inspect(path: str, as_json: bool, tensors: bool, **options: Any) -> None:
    """Show shapes, dtypes and the memory plan of the checkpoint PATH (default: the embedded model)."""
    options["model"] = path or options["model"]
    config = engine_config(settings.load(), **options)
    with open_checkpoint(resolve_model(config)) as checkpoint:
        report = _report(checkpoint, config, tensors)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print(report)


def _report(checkpoint: Checkpoint, config: EngineConfig, tensors: bool) -> dict[str, Any]:
    recipe = recipe_for(checkpoint, config)
    stored = checkpoint.stored()
    dtypes: dict[str, dict[str, int]] = {}
    for tensor in stored.values():
        entry = dtypes.setdefault(tensor.dtype, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.nbytes
    report: dict[str, Any] = {
        "directory": str(checkpoint.directory),
        "format": checkpoint.format,
        "model": dataclasses.asdict(checkpoint.config),
        "stored": dtypes,
        "quant": {"requested": recipe.requested, "runs": recipe.name, "left_unquantised": sorted(recipe.ignored)},
        "memory": _memory(checkpoint, config, recipe),
    }
    report["model"].pop("quantization")
    if tensors:
        report["tensors"] = [
            {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "bytes": t.nbytes, "file": t.file.name}
            for t in stored.values()
        ]
    return report


def _memory(checkpoint: Checkpoint, config: EngineConfig, recipe: Recipe) -> dict[str, Any]:
    try:
        inputs = (checkpoint.config, recipe, checkpoint.stored(), config, _available(config), checkpoint.kv_cache())
        plan: MemoryPlan = make_plan(*inputs) if config.device == "cpu" else make_plan(*inputs, base_bytes=0)
    except PaddleDSError as error:
        return {"fits": False, "error": error.message}
    return {"fits": True, "total_bytes": plan.total_bytes, "kv_tokens": plan.kv_tokens, **dataclasses.asdict(plan)}


def _available(config: EngineConfig) -> MemoryStats:
    """Of the device that is asked for. Only one that is not the CPU needs Paddle to be found."""
    if config.device == "cpu":
        return CpuDevice().memory_stats()
    current = settings.load()
    environment.prepare(config.num_threads, config.device, current.device_profiles)
    environment.import_paddle()
    from paddle_ds.devices.discovery import open_device

    return open_device(config.device, Path(current.device_profiles) if current.device_profiles else None).memory_stats()


def _print(report: dict[str, Any]) -> None:
    console = Console(markup=False, emoji=False)  # a path or a message may hold brackets
    console.print(f"{report['directory']}  format {report['format']}", style="bold", highlight=False)
    for title, rows in (
        ("model", [(key, value) for key, value in report["model"].items()]),
        ("stored", [(k, f"{v['tensors']} tensors, {readable_bytes(v['bytes'])}") for k, v in report["stored"].items()]),
        ("quantisation", list(report["quant"].items())),
        ("memory plan", [(key, _readable(key, value)) for key, value in report["memory"].items()]),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for key, value in rows:
            table.add_row(str(key), str(value))
        console.print(table)
    if "tensors" in report:
        table = Table("name", "shape", "dtype", "bytes", "file", box=None)
        for tensor in report["tensors"]:
            table.add_row(tensor["name"], str(tensor["shape"]), tensor["dtype"], str(tensor["bytes"]), tensor["file"])
        console.print(table)


def _readable(key: str, value: Any) -> Any:
    if key == "weight_bytes":
        return ", ".join(f"{dtype} {readable_bytes(count)}" for dtype, count in value.items())
    return readable_bytes(value) if key.endswith("_bytes") else value
