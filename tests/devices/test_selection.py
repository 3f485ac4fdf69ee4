"""Which device is taken, and what is said where it is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.on_devices import ROOT, result, run
from paddle_ds.devices import plugins
from paddle_ds.devices.discovery import parse
from paddle_ds.errors import DeviceError

LIST = """
import json
from paddle_ds.devices import environment
environment.import_paddle()
from paddle_ds.devices.discovery import available
print(json.dumps([device.name for device in available()]))
"""

WHERE = """
import json, sys
from paddle_ds import LLM, SamplingParams
import emulated_device
llm = LLM(device=sys.argv[1])
llm.generate("12+7", SamplingParams(temperature=0.0, max_tokens=2))
seen = []
for index in range(2):
    try:
        count = emulated_device.counters(index)
    except IndexError:
        break
    seen.append([count.physical, sum(count.kernels.values()) > 100])
print(json.dumps(seen))
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu", ("cpu", 0)), ("npu", ("npu", 0)), ("npu:3", ("npu", 3)), ("iluvatar_gpu:0", ("iluvatar_gpu", 0))],
)
def test_a_name_is_a_type_and_an_index(name: str, expected: tuple[str, int]) -> None:
    assert parse(name) == expected


@pytest.mark.parametrize("name", ["", "npu:", "npu:x", ":0", "NPU:0", "npu:0:1", "cpu:1", "npu -1", "npu:99999"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=r"not a device name; expected cpu, or a type and an index such as npu:0"):
        parse(name)


def generate(device: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != plugins.VARIABLE}
    command = [sys.executable, "-m", "paddle_ds", "generate", "--device", device, "--max-tokens", "2", "12+7"]
    return subprocess.run(command, env={**environ, **more}, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)


def test_an_absent_plug_in_is_named_with_its_variable_and_the_cure() -> None:
    done = generate("npu:0")
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error (device_not_found): device 'npu:0' is not here")
    for part in ("paddle-custom-npu", "CUSTOM_DEVICE_ROOT is not set", "pip install", "Have: cpu"):
        assert part in line


def test_a_plug_in_that_cannot_be_loaded_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "libpaddle-custom-npu.so").write_text("no library")
    done = generate("npu:0", CUSTOM_DEVICE_ROOT=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "error (device_error): Paddle cannot be loaded because of a plug-in" in done.stderr
    assert "libpaddle-custom-npu.so: it cannot be loaded:" in done.stderr
    assert f"CUSTOM_DEVICE_ROOT is {tmp_path}" in done.stderr


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "is not a directory" in plugins.where({plugins.VARIABLE: str(tmp_path / "nowhere")})
    assert "holds no lib*.so" in plugins.where({plugins.VARIABLE: str(tmp_path)})


REFUSALS = """
import json, sys
from paddle_ds.devices import environment
environment.import_paddle()
from paddle_ds.devices.discovery import open_device
from paddle_ds.errors import DeviceNotFound
told = {}
for name in sys.argv[1:]:
    try:
        open_device(name)
    except DeviceNotFound as error:
        told[name] = error.message
print(json.dumps(told))
"""


def test_a_device_of_another_build_is_refused_with_what_to_install() -> None:
    expected = {
        "gpu:0": ["was not built for NVIDIA", "paddlepaddle-gpu"],
        "xpu:0": ["was not built for", "xpu"],
        "dcu:0": ["was not built for", "Hygon"],
        "tpu:0": ["no plug-in of the type 'tpu'", "known:", "npu"],
        "mlu:0": ["paddle-custom-mlu", "Cambricon", "Have: cpu, npu:0, npu:1"],
        "npu:7": ["this process sees npu:0, npu:1"],
    }
    told = result(REFUSALS, *expected)
    for name, parts in expected.items():
        for part in parts:
            assert part in told[name]


def test_an_index_beyond_the_visible_ones_is_told_with_the_variable_that_hides_it() -> None:
    program = "from paddle_ds import LLM; LLM(device='npu:1')"
    visible = {"ASCEND_RT_VISIBLE_DEVICES": "1"}
    done = run(program, visible_variable="ASCEND_RT_VISIBLE_DEVICES", more=visible)
    assert done.returncode == 1
    assert "DeviceNotFound: device 'npu:1' is not here; this process sees npu:0; ASCEND_RT_VISIBLE_DEVICES=1" in done.stderr


def test_a_variable_that_hides_every_device_is_named() -> None:
    program = "from paddle_ds import LLM; LLM(device='npu:0')"
    done = run(program, visible_variable="ASCEND_RT_VISIBLE_DEVICES", more={"ASCEND_RT_VISIBLE_DEVICES": "-1"})
    assert done.returncode == 1
    assert "device 'npu:0' is not here: ASCEND_RT_VISIBLE_DEVICES=-1 hides every device" in done.stderr


def test_both_devices_are_listed() -> None:
    assert result(LIST) == ["cpu", "npu:0", "npu:1"]


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("npu:1", None, [[0, False], [1, True]]),
        ("npu:0", "1,0", [[1, True], [0, False]]),
    ],
)
def test_the_index_counts_among_visible_devices(device: str, visible: str | None, expected: list[list[object]]) -> None:
    more = {} if visible is None else {"ASCEND_RT_VISIBLE_DEVICES": visible}
    assert result(WHERE, device, visible_variable="ASCEND_RT_VISIBLE_DEVICES", more=more) == expected
