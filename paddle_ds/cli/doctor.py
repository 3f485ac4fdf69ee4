"""``paddle-ds doctor``: versions, pins, compiler, processor, devices, and what will run on what. No network needed."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import click
from packaging.requirements import Requirement

from paddle_ds import __version__, settings
from paddle_ds.config.engine import EngineConfig
from paddle_ds.devices import environment
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.engine.assets import resolve_model
from paddle_ds.errors import PaddleDSError
from paddle_ds.kernels.build import prebuilt

Level = Literal["ok", "warning", "error"]

#: what is known to work together, and what goes wrong otherwise
_PINS = {
    "paddlepaddle": ("paddlepaddle>=3.0,<4", "pip install 'paddlepaddle>=3.0,<4'"),
    "paddlenlp": ("paddlenlp==3.0.0b4", "pip install paddlenlp==3.0.0b4 (name the pre-release; --pre drags in others)"),
    "aistudio-sdk": ("aistudio-sdk==0.2.6", "pip install aistudio-sdk==0.2.6 (paddlenlp imports a name that 0.3 dropped)"),
    "numpy": ("numpy<2", "pip install 'numpy<2' (paddlenlp holds numpy at 1.26)"),
    "datasets": ("datasets<4", "pip install 'datasets<4' (newer ones want numpy 2)"),
    "pyarrow": ("pyarrow<20", "pip install 'pyarrow<20' (newer ones want numpy 2)"),
    "safetensors": ("safetensors>=0.6,<0.8", "pip install 'safetensors>=0.6,<0.8'"),
}
_OPTIONAL = {"paddlenlp", "aistudio-sdk", "datasets", "pyarrow", "safetensors"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report; ``fix`` is a command or a sentence where something is wrong."""

    topic: str
    level: Level
    text: str
    fix: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def doctor(as_json: bool) -> None:
    """Check this machine. Exit status 1 if something is wrong that will stop a server."""
    findings = list(examine())
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        for finding in findings:
            mark = {"ok": "ok  ", "warning": "warn", "error": "FAIL"}[finding.level]
            click.echo(f"{mark}  {finding.topic:12} {finding.text}")
            if finding.fix:
                click.echo(f"      {'':12} fix: {finding.fix}")
    sys.exit(1 if any(finding.level == "error" for finding in findings) else 0)


def examine() -> Iterator[Finding]:
    """Run every check; a check that itself fails becomes a finding."""
    for check in _CHECKS:
        try:
            yield from check()
        except Exception as error:
            yield Finding(check.__name__.strip("_"), "error", f"the check failed: {error!r}")


def _system() -> Iterator[Finding]:
    yield Finding("paddle-ds", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        yield Finding("python", "warning", "tested with 3.11; the lock covers 3.10 to 3.12", "use Python 3.11")


def _environment() -> Iterator[Finding]:
    try:
        settings.load()
    except PaddleDSError as error:
        yield Finding("environment", "error", error.message, "correct or unset the variable")


def _versions() -> Iterator[Finding]:
    if _installed("paddlepaddle") and _installed("paddlepaddle-gpu"):
        text = "paddlepaddle and paddlepaddle-gpu are both installed and provide the same module"
        yield Finding("versions", "error", text, "pip uninstall one of them, then reinstall the other")
    for name, (requirement, fix) in _PINS.items():
        version = _installed(name) or (_installed("paddlepaddle-gpu") if name == "paddlepaddle" else None)
        if version is None:
            level: Level = "warning" if name in _OPTIONAL else "error"
            why = "needed for hub names and quantisation" if name in _OPTIONAL else "needed for everything"
            yield Finding("versions", level, f"{name} is not installed ({why})", fix)
        elif not Requirement(requirement).specifier.contains(version, prereleases=True):
            level = "warning" if name in _OPTIONAL else "error"
            yield Finding("versions", level, f"{name} {version} does not match {requirement}", fix)
        else:
            yield Finding("versions", "ok", f"{name} {version}")


def _compiler() -> Iterator[Finding]:
    command = shlex.split(os.environ.get("CXX") or "g++")
    path = shutil.which(command[0])
    if path is None and _prebuilt() is not None:
        yield Finding("compiler", "ok", "no g++, and none is needed: the package has brought built operators")
        return
    if path is None:
        yield Finding("compiler", "warning", "no g++: operators of our own cannot be built", "apt-get install g++")
        return
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    yield Finding("compiler", "ok", version[0] if version else path)


def _processor() -> Iterator[Finding]:
    device = CpuDevice()
    memory = device.memory_stats()
    features = ", ".join(device.capabilities.features) or "none of those that matter"
    vendor = environment.cpu_vendor() or platform.machine()
    yield Finding("processor", "ok", f"{vendor}, {environment.usable_cores()} usable cores, {features}")
    yield Finding("memory", "ok", f"{memory.available_bytes / 1e9:.1f} of {memory.total_bytes / 1e9:.1f} GB available")
    for name, value in environment.variables().items():
        yield Finding("environment", "ok", f"{name}={value} is set before Paddle is loaded")


def _devices() -> Iterator[Finding]:
    if _installed("paddlepaddle") is None and _installed("paddlepaddle-gpu") is None:
        return
    environment.prepare()
    environment.import_paddle()
    import paddle

    custom = paddle.device.get_all_custom_device_type()
    yield Finding("devices", "ok", f"cpu; plug-ins: {', '.join(custom) or 'none'}")
    from paddle_ds.kernels.registry import NATIVE, choose

    kernels = choose(CpuDevice())
    chosen = ", ".join(f"{op}={name}" for op, name in kernels.chosen.items())
    yield Finding("operators", "warning" if kernels.passed_over else "ok", f"on cpu: {chosen}")
    for op, reason in kernels.passed_over.items():
        yield Finding("operators", "warning", f"{op}: passed over {reason}")
    if NATIVE in kernels.chosen.values():
        yield from _compiled()


def _compiled() -> Iterator[Finding]:
    """What the compiled operators use: without a model, as a layer of ordinary size has it."""
    from paddle_ds.kernels.products import Compiled

    compiled = Compiled.here()
    origin = "came with the package" if Path(compiled.library) == _prebuilt() else "built here"
    origin = "named by PADDLE_DS_OPERATORS" if settings.load().operators else origin
    yield Finding("library", "ok", f"{compiled.library} ({origin})")
    yield Finding("vector-isa", "ok", compiled.vector_isa)
    yield Finding("onednn", "ok", compiled.onednn_version)
    yield Finding("products", "ok", compiled.best_product)
    for name, value in environment.isa_caps().items():
        yield Finding("isa-cap", "warning", f"{name}={value} may hold back the processor's best instruction set", f"unset {name}")


def _prebuilt() -> Path | None:
    version = _installed("paddlepaddle") or _installed("paddlepaddle-gpu")
    return prebuilt(version) if version else None


def _model() -> Iterator[Finding]:
    from paddle_ds.checkpoints import open_checkpoint

    with open_checkpoint(resolve_model(EngineConfig())) as checkpoint:
        count = len(checkpoint.stored())
    yield Finding("model", "ok", f"the embedded model is whole ({count} tensors)")


def _directories() -> Iterator[Finding]:
    current = settings.load()
    for name, path in (("runtime", current.runtime_dir), ("cache", current.cache_dir)):
        existing = path
        while not os.path.exists(existing):
            existing = os.path.dirname(existing) or "/"
        if os.path.isdir(existing) and os.access(existing, os.W_OK):
            yield Finding("directories", "ok", f"{name}: {path}")
        else:
            fix = f"set PADDLE_DS_{name.upper()}_DIR to a directory you may write to"
            yield Finding("directories", "error", f"{name}: {path} cannot be written", fix)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _system,
    _environment,
    _versions,
    _compiler,
    _processor,
    _directories,
    _model,
    _devices,
)
