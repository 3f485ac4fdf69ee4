"""Which operators would run, and what the compiled ones use. For a process that has loaded Paddle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paddle_ds.cli.checks.compiler import brought
from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding, Level
from paddle_ds.cli.checks.model import device_name

_TOPIC = "operators"


def check(context: Context) -> Iterator[Finding]:
    """On the device that was asked for, which is there.

    Where fallbacks are refused (``--strict``, ``PADDLE_DS_STRICT``), each one is an error.
    """
    from paddle_ds.devices.discovery import open_device
    from paddle_ds.kernels.registry import NATIVE, choose

    current = context.settings()
    device = open_device(device_name(context), Path(current.device_profiles) if current.device_profiles else None)
    kernels = choose(device)
    chosen = ", ".join(f"{op}={name}" for op, name in kernels.chosen.items())
    yield Finding("operators", _TOPIC, "ok", f"on {device.name}: {chosen}")
    level: Level = "error" if context.asked.strict or current.strict else "warning"
    for op, reason in kernels.passed_over.items():
        fix = "see the topic compiler" if device.type == "cpu" else "use a plug-in or a build that has what is missing"
        yield Finding("operator_fallback", _TOPIC, level, f"{op} runs on {kernels.chosen[op]}; passed over {reason}", fix)
    if NATIVE in kernels.chosen.values():
        yield from _compiled(context)


def _compiled(context: Context) -> Iterator[Finding]:
    """What the compiled operators use: without a model, as a layer of ordinary size has it."""
    from paddle_ds.devices import environment
    from paddle_ds.kernels.products import Compiled

    compiled = Compiled.here()
    origin = "came with the package" if Path(compiled.library) == brought(context) else "built here"
    origin = "named by PADDLE_DS_OPERATORS" if context.settings().operators else origin
    yield Finding("library", "library", "ok", f"{compiled.library} ({origin})")
    yield Finding("vector_isa", "vector-isa", "ok", compiled.vector_isa)
    yield Finding("onednn", "onednn", "ok", compiled.onednn_version)
    yield Finding("products", "products", "ok", compiled.best_product)
    for name, value in environment.isa_caps().items():
        text = f"{name}={value} may hold back the processor's best instruction set"
        yield Finding("isa_capped", "isa-cap", "warning", text, f"unset {name}")
