"""``paddle-ds devices``: what there is to run on, and which operators of a model run there."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from paddle_ds import settings
from paddle_ds.cli import coverage_page, coverage_table
from paddle_ds.cli.options import engine_config, engine_options
from paddle_ds.config.engine import EngineConfig
from paddle_ds.devices import environment, plugins
from paddle_ds.devices.base import Device
from paddle_ds.engine.progress_bar import LoadingBar
from paddle_ds.errors import PaddleDSError, UnsupportedError
from paddle_ds.runtime.memory_plan import readable_bytes
from paddle_ds.settings import Settings

if TYPE_CHECKING:
    from paddle_ds.engine.build import LoadedModel


_FILE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


@click.group()
def devices() -> None:
    """What there is to run on, and which operators of a model run there."""


@devices.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_devices(as_json: bool) -> None:
    """Show every device that a model could run on, what it can do, and what it lacks and why."""
    current = settings.load()
    os.environ.setdefault("GLOG_minloglevel", "1")  # the loader's messages on plug-ins read like errors
    environment.prepare(current.num_threads)
    environment.import_paddle()
    from paddle_ds.devices.discovery import available

    found = [_about(device) for device in available(Path(current.device_profiles) if current.device_profiles else None)]
    refused = [{"path": str(plugin.path), "problem": plugin.problem} for plugin in plugins.find() if plugin.problem]
    if as_json:
        click.echo(json.dumps({"devices": found, "plugins_not_loaded": refused}, ensure_ascii=False, indent=2))
        return
    for line in _lines(found, refused):
        click.echo(line)


@devices.command()
@click.argument("path", metavar="[MODEL]", default="")
@click.option("--prompt-tokens", type=click.IntRange(1), default=32, show_default=True, help="Tokens of the prefill.")
@click.option("--decode-steps", type=click.IntRange(1), default=4, show_default=True, help="Steps of one token each.")
@click.option("--json", "json_file", type=_FILE, help="Write the report to this file; - for standard output.")
@click.option("--html", "html_file", type=_FILE, help="Write a heat map to this file, as a web page.")
@engine_options
def coverage(
    path: str, prompt_tokens: int, decode_steps: int, json_file: Path | None, html_file: Path | None, **options: Any
) -> None:
    """Run a prefill and decode steps of MODEL (default: the embedded one) and show which operators ran on the device.

    With --strict the exit status is 1 where an operator of the decode step fell back to the CPU.
    """
    for file in (json_file, html_file):
        if file is not None and not file.parent.is_dir():
            raise click.BadParameter(f"{file.parent} is not a directory")
    options["model"] = path or options["model"]
    current = settings.load()
    config = engine_config(current, **options)
    loaded = _load(dataclasses.replace(config, strict=False), current)  # strict, it would end before there is a report
    from paddle_ds.runtime.coverage import measure

    report = measure(loaded, prompt_tokens=prompt_tokens, decode_steps=decode_steps)
    document = {"model": loaded.name, "quant": loaded.recipe.name, "kernels": loaded.kernels, **report.as_dict()}
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    if json_file == Path("-"):
        sys.stdout.write(text)
    else:
        coverage_table.show(report, document, Console(markup=False, emoji=False))
        if json_file is not None:
            json_file.write_text(text, encoding="utf-8")
    if html_file is not None:
        html_file.write_text(coverage_page.render(report, document), encoding="utf-8")
    if config.strict and report.decode.missing:
        names = ", ".join(map(str, report.decode.missing))
        raise UnsupportedError(f"strict: operators of the decode step fall back to the CPU on {report.device}: {names}")


def _load(config: EngineConfig, current: Settings) -> LoadedModel:
    environment.prepare(config.num_threads or current.num_threads, config.device, current.device_profiles)
    environment.import_paddle()
    from paddle_ds.engine.build import load

    with LoadingBar(sys.stderr.isatty()) as bar:
        return load(config, current, bar)


def _about(device: Device) -> dict[str, Any]:
    """One device for JSON. A device that fails while it is asked says so among its problems."""
    profile = getattr(device, "profile", None)
    about: dict[str, Any] = {
        "name": device.name,
        "type": device.type,
        "index": device.index,
        "profile": profile.name if profile else None,
        "vendor": profile.vendor if profile else None,
    }
    try:
        capabilities, problems = device.capabilities, [dataclasses.asdict(problem) for problem in device.preflight()]
        memory = dataclasses.asdict(device.memory_stats()) if "memory_stats" in capabilities.ops else None
    except PaddleDSError as error:
        about |= {"capabilities": [], "missing": {}, "dtypes": [], "features": [], "memory": None}
        return about | {"problems": [{"level": "error", "text": error.message, "fix": ""}]}
    return about | {
        "capabilities": sorted(capabilities.ops),
        "missing": dict(sorted(capabilities.missing.items())),
        "dtypes": sorted(capabilities.dtypes),
        "features": list(capabilities.features),
        "memory": memory,
        "problems": problems,
    }


def _lines(found: list[dict[str, Any]], refused: list[dict[str, str]]) -> Iterator[str]:
    for about in found:
        vendor = f"  {about['vendor']} (profile {about['profile']})" if about["profile"] else ""
        yield about["name"] + vendor
        memory = about["memory"]
        if memory:
            free, total = readable_bytes(memory["available_bytes"]), readable_bytes(memory["total_bytes"])
            yield f"    memory    {free} of {total} free"
        yield f"    products  {', '.join(about['dtypes']) or 'of no type that is known'}"
        yield f"    can       {', '.join(about['capabilities'] + about['features']) or 'run plain operators'}"
        for capability, reason in about["missing"].items():
            yield f"    lacks     {capability}: {reason}"
        for problem in about["problems"]:
            fix = f"; {problem['fix']}" if problem["fix"] else ""
            yield f"    {problem['level']:9} {problem['text']}{fix}"
    for plugin in refused:
        yield f"not loaded: {plugin['path']}: {plugin['problem']}"
