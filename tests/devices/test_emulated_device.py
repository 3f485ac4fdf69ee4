"""The plug-in of the emulated devices itself: memory, streams, faults, counters and kernels."""

from __future__ import annotations

import ast
import functools
import json
import signal
from pathlib import Path
from typing import Any

import pytest

import emulated_device
from devices.kernel_cases import CASES
from devices.on_devices import result, run
from emulated_device import library
from emulated_device.control import read_report

_HERE = Path(__file__).parent
_CHECKS = (_HERE / "plugin_checks.py").read_text(encoding="utf-8")
_CHECK_NAMES = [
    node.name.removeprefix("check_")
    for node in ast.parse(_CHECKS).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]

_PRELUDE = """
import json, sys
from paddle_ds.devices import environment
environment.prepare(None); environment.import_paddle()
import paddle, numpy as np, emulated_device
"""


@functools.cache
def kernel_results() -> dict[str, Any]:
    """What ``kernel_program.py`` found."""
    told: dict[str, Any] = result(
        (_HERE / "kernel_program.py").read_text(encoding="utf-8"), more={"FLAGS_enable_api_kernel_fallback": "0"}
    )
    return told


@functools.cache
def check_results() -> dict[str, str]:
    """What ``plugin_checks.py`` found."""
    told: dict[str, str] = result(_CHECKS, memory_bytes=48 << 20)
    return told


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_gives_what_the_cpu_gives(name: str) -> None:
    assert kernel_results()["faults"][name] == ""


def test_every_kernel_has_a_case() -> None:
    assert set(kernel_results()["kernels"]) == {case.kernel for case in CASES.values()}


def test_kernels_touch_no_memory_but_their_own() -> None:
    assert kernel_results()["violations"] == 0


@pytest.mark.parametrize("name", _CHECK_NAMES)
def test_the_device(name: str) -> None:
    assert check_results()[name] == ""


def test_without_kernels_paddle_computes_on_the_cpu_and_only_the_visible_device_is_used(tmp_path: Path) -> None:
    program = """
assert paddle.device.get_available_custom_device() == ["mlu"]  # Paddle numbers them only where there are several
paddle.set_device("mlu:0")
x = paddle.to_tensor(np.arange(6, dtype="float32").reshape([2, 3]))
product = paddle.matmul(x, x.transpose([1, 0])).numpy().tolist()
print(json.dumps({"product": product, "kernels": dict(emulated_device.counters().kernels)}))
"""
    path = tmp_path / "report.json"
    told = result(
        _PRELUDE + program,
        type_name="mlu",
        kernels="none",
        report=path,
        visible_variable="MLU_VISIBLE_DEVICES",
        more={"MLU_VISIBLE_DEVICES": "1"},
    )
    assert told["product"] == [[5, 14], [14, 50]]
    assert set(told["kernels"]) <= {"contiguous", "strided_copy"}
    (device,) = read_report(json.loads(path.read_text(encoding="utf-8")))
    assert device.physical == 1
    assert device.d2h.bytes >= 2 * 24, "the operands came to the CPU"
    assert device.violations == 0


def test_one_kernel_is_taken_away_and_memory_is_poisoned_and_a_full_device_answers_null() -> None:
    program = """
paddle.set_device("gcu:0")
fresh = paddle.empty([16]).numpy()
x = paddle.ones([2, 4])
y = paddle.nn.functional.softmax(x + x, axis=-1).numpy()
idle = paddle.empty([600_000], dtype="uint8")
del idle
larger = paddle.empty([700_000], dtype="uint8")  # Paddle gives back what is idle, and tries again
try:
    paddle.empty([2_000_000], dtype="uint8")
    error = ""
except MemoryError as caught:
    error = str(caught)
print(json.dumps({"nan": bool(np.isnan(fresh).all()), "softmax": y.tolist(), "error": error,
                  "kernels": sorted(emulated_device.counters().kernels)}))
"""
    told = result(
        _PRELUDE + program, type_name="gcu", kernels="full,-softmax", poison=True, when_full="null", memory_bytes=1_000_000
    )
    assert told["nan"]
    assert told["softmax"] == [[0.25] * 4] * 2
    assert told["kernels"] == ["add", "full"]
    assert "ResourceExhaustedError" in told["error"]
    assert "Out of memory error on gcu:0" in told["error"]


def test_a_host_that_reads_device_memory_crashes() -> None:
    program = """
import ctypes
paddle.set_device("npu:0")
x = paddle.ones([4]); paddle.device.synchronize()
print("before", flush=True)
ctypes.string_at(x.data_ptr(), 4)
print("after", flush=True)
"""
    done = run(_PRELUDE + program)
    assert done.returncode == -signal.SIGSEGV
    lines = done.stdout.splitlines()  # Paddle's own trace among them
    assert "before" in lines
    assert "after" not in lines


def test_paddle_ends_the_process_when_a_device_that_is_gone_cannot_even_free() -> None:
    program = """
paddle.set_device("npu:0")
x = paddle.ones([4])
emulated_device.arm("gone")
print("before", flush=True)
try:
    x + x
except OSError:
    pass
del x
print("after", flush=True)
"""
    done = run(_PRELUDE + program)
    assert done.returncode == -signal.SIGABRT
    lines = done.stdout.splitlines()  # Paddle's own trace among them
    assert "before" in lines
    assert "after" not in lines


def test_a_process_with_a_stuck_stream_ends() -> None:
    program = """
paddle.set_device("npu:0")
x = paddle.ones([4, 4])
y = paddle.matmul(x, x)
event = paddle.device.Event(); event.record()
print("stuck", not event.query())
"""
    done = run(_PRELUDE + program, fault="stuck:matmul", limit_s=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["stuck", "True"]


def test_a_setting_that_cannot_be_understood_is_told_and_no_device_appears() -> None:
    done = run("import paddle; print(paddle.device.get_all_custom_device_type())", kernels="full,-sofmax")
    assert done.stdout.strip() == "[]"
    assert "no kernel 'sofmax'" in done.stderr


def test_the_library_is_built_once_and_again_for_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.cc").write_text('extern "C" int one() { return 1; }\n', encoding="utf-8")
    monkeypatch.setattr(library, "SOURCES", sources)
    first = emulated_device.build(tmp_path / "cache")
    made_ns = (first / library.LIBRARY).stat().st_mtime_ns
    assert emulated_device.build(tmp_path / "cache") == first
    assert (first / library.LIBRARY).stat().st_mtime_ns == made_ns
    (sources / "one.cc").write_text('extern "C" int one() { return 2; }\n', encoding="utf-8")
    assert emulated_device.build(tmp_path / "cache") != first
    (sources / "one.cc").write_text("no C++\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"one\.cc"):
        emulated_device.build(tmp_path / "cache")
