"""Policy, wire and command line start without Paddle."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = [
    "paddle_ds",
    "paddle_ds.sched",
    "paddle_ds.ipc.client",
    "paddle_ds.ipc.server",
    "paddle_ds.ipc.messages",
    "paddle_ds.ipc.parent",
    "paddle_ds.text",
    "paddle_ds.config.engine",
    "paddle_ds.config.model",
    "paddle_ds.config.recipe",
    "paddle_ds.config.sampling",
    "paddle_ds.config.tensors",
    "paddle_ds.errors",
    "paddle_ds.settings",
    "paddle_ds.logs",
    "paddle_ds.checkpoints",
    "paddle_ds.devices.cpu",
    "paddle_ds.devices.discovery",
    "paddle_ds.devices.environment",
    "paddle_ds.engine.core",
    "paddle_ds.engine.llm",
    "paddle_ds.engine.process",
    "paddle_ds.runtime.memory_plan",
    "paddle_ds.cli.main",
    "paddle_ds.cli.chat",
    "paddle_ds.cli.doctor",
    "paddle_ds.cli.generate",
    "paddle_ds.cli.inspect",
]


def _loaded_after(statements: str) -> set[str]:
    code = f"{statements}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_none_of_these_loads_paddle() -> None:
    loaded = _loaded_after("\n".join(f"import {name}" for name in MODULES))
    assert set(MODULES) <= loaded
    assert not {"paddle", "paddlenlp", "paddleslim", "flask"} & loaded


@pytest.mark.parametrize("name", ["paddle_ds", "paddle_ds.sched", "paddle_ds.ipc.client"])
def test_what_an_http_worker_imports_stays_light(name: str) -> None:
    assert not {"paddle", "torch", "transformers"} & _loaded_after(f"import {name}")


def test_the_package_names_what_it_offers() -> None:
    code = "import paddle_ds\nassert {'LLM', 'SamplingParams'} <= set(paddle_ds.__all__)\npaddle_ds.LLM"
    assert "paddle_ds.engine.llm" in _loaded_after(code)
