"""The examples of ``docs/devices/adding.md``, taken from the page and run: a package's device and a profile of one's own."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import stat
import types
from pathlib import Path
from typing import Any

import pytest

from devices.on_devices import environ, result
from paddle_ds.devices.base import Device
from paddle_ds.devices.monitor import parse, read_monitor
from paddle_ds.devices.profile import DeviceProfile, Metric, Monitor, profile_of, profiles
from paddle_ds.errors import DeviceNotFound, UnsupportedError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "devices" / "adding.md").read_text(encoding="utf-8")
MIB = 1 << 20


def block(language: str) -> str:
    """The only code block in that language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def rows(after: str) -> set[str]:
    """Names in the first column of the first table after that line."""
    table = re.search(r"(^\|.*\n)+", PAGE.split(f"\n{after}\n", 1)[1], re.MULTILINE)
    assert table is not None
    return {name for row in table[0].splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.fixture
def profile_directory(tmp_path: Path) -> Path:
    (tmp_path / "acme.yaml").write_text(block("yaml"), encoding="utf-8")
    return tmp_path


@pytest.fixture
def acme(profile_directory: Path) -> DeviceProfile:
    return profiles(profile_directory)["acme"]


@pytest.fixture
def module(tmp_path: Path) -> types.ModuleType:
    made = types.ModuleType("paddle_ds_acme")
    exec(compile(block("python"), "adding.md", "exec"), made.__dict__)
    made.SYSFS = tmp_path / "sys"  # type: ignore[attr-defined]
    return made


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A directory that looks as if pip had installed the example there."""
    project = dict(re.findall(r'^(name|version) = "(.*)"$', block("toml"), re.MULTILINE))
    (group,) = re.findall(r'^\[project\.entry-points\."(.*)"\]$', block("toml"), re.MULTILINE)
    (entry,) = re.findall(r'^(\w+) = "(\w+:\w+)"$', block("toml"), re.MULTILINE)
    site = tmp_path / "site"
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry[0]} = {entry[1]}\n")
    (site / f"{entry[1].partition(':')[0]}.py").write_text(block("python"), encoding="utf-8")
    return site


def with_package(site: Path, sysfs: Path) -> dict[str, Any]:
    """How a process is started in which the example is installed."""
    for index, used in ((0, 0), (1, 3 * MIB)):
        directory = sysfs / f"acme{index}"
        directory.mkdir(parents=True)
        (directory / "memory_total").write_text(f"{900 * MIB}\n")
        (directory / "memory_used").write_text(f"{used}\n")
    paths = os.pathsep.join((str(site), environ("acme")["PYTHONPATH"]))
    return {"type_name": "acme", "more": {"PYTHONPATH": paths, "ACME_SYSFS": str(sysfs)}}


USED = """
import json, os
from pathlib import Path
from paddle_ds.devices import environment
environment.prepare(None)
environment.import_paddle()
import paddle
import emulated_device
import paddle_ds_acme
from paddle_ds.devices.discovery import open_device
from paddle_ds.errors import DeviceNotFound, DeviceTimeout

paddle_ds_acme.SYSFS = Path(os.environ["ACME_SYSFS"])
device = open_device("acme:1")
device.activate()
stats = device.memory_stats()
told = {
    "class": type(device).__module__,
    "names": [device.name, device.type, device.index, str(paddle.to_tensor([1.0]).place)],
    "memory": [stats.total_bytes, stats.available_bytes],
    "metrics": dict(device.metrics()),
    "preflight": [problem.text for problem in device.preflight()],
    "default": open_device("acme").name,
}
stream, event = device.make_stream(), device.make_event()
stream.record_event(event)
event.synchronize()
told["event"] = event.query()
big = paddle.ones([1 << 20])
device.synchronize(timeout_s=30.0)
del big
before = emulated_device.counters(1).used_bytes
device.empty_cache()
told["emptied"] = before - emulated_device.counters(1).used_bytes >= 4 << 20
try:
    open_device("acme:2")
except DeviceNotFound as error:
    told["absent"] = error.message
emulated_device.hold(1)
busy = paddle.ones([8])
try:
    device.synchronize(timeout_s=0.3)
except DeviceTimeout as error:
    told["busy"] = error.message
emulated_device.release()
print(json.dumps(told))
"""

GENERATED = """
import json, os, sys
from pathlib import Path
from paddle_ds.devices import environment
environment.prepare(None)
environment.import_paddle()
from paddle_ds import LLM, SamplingParams
if sys.argv[1] != "cpu":
    import paddle_ds_acme
    paddle_ds_acme.SYSFS = Path(os.environ["ACME_SYSFS"])
llm = LLM(device=sys.argv[1], max_context_tokens=256)
outputs = llm.generate(["12+7", "Seven apples"], SamplingParams(temperature=0.0, max_tokens=16))
print(json.dumps({
    "answers": [output.completions[0].token_ids for output in outputs],
    "kernels": {name: llm.loaded.kernels[name] for name in ("silu_mul", "int8_linear")},
}))
"""

PROFILED = """
import json, os, sys
from pathlib import Path
from paddle_ds.devices import environment
environment.prepare(None, device="acme:1", profile_directory=sys.argv[1])
environment.import_paddle()
from paddle_ds.devices.discovery import open_device
from paddle_ds.errors import DeviceNotFound
device = open_device("acme:0", Path(sys.argv[1]))
try:
    open_device("acme:1", Path(sys.argv[1]))
except DeviceNotFound as error:
    absent = error.message
print(json.dumps([device.profile.vendor, os.environ["ACME_LOG_LEVEL"], os.environ["FLAGS_use_stride_kernel"], absent]))
"""


def test_the_example_has_every_member_of_a_device(module: types.ModuleType) -> None:
    members = {name for name in dir(Device) if not name.startswith("_")}
    example = module.AcmeDevice(1)
    assert {name for name in members if not hasattr(example, name)} == set()
    for name in members:
        wanted = inspect.getattr_static(Device, name)
        if inspect.isfunction(wanted):
            theirs = inspect.signature(getattr(module.AcmeDevice, name)).parameters
            ours = inspect.signature(wanted).parameters
            assert [(each.name, each.default) for each in theirs.values()] == [
                (each.name, each.default) for each in ours.values()
            ]


def test_the_page_explains_every_member() -> None:
    assert rows("What each member is asked for:") == {name for name in dir(Device) if not name.startswith("_")}


def test_the_example_says_what_is_not_there(module: types.ModuleType) -> None:
    with pytest.raises(DeviceNotFound, match="device 'acme:0' is not here: Paddle sees 0"):
        module.open_device("acme:0")
    device = module.AcmeDevice(0)
    (problem,) = device.preflight()
    assert problem.level == "error"
    assert device.metrics() == {}
    with pytest.raises(UnsupportedError, match=r"no INT8 layout 'llm\.int8'"):
        device.quantized_weight(None, "llm.int8")


def test_the_example_is_found_by_its_entry_point_and_works_on_the_emulated_device(package: Path, tmp_path: Path) -> None:
    told = result(USED, **with_package(package, tmp_path / "sys"))
    assert told["class"] == "paddle_ds_acme"
    assert told["names"] == ["acme:1", "acme", 1, "Place(acme:1)"]
    assert told["memory"] == [900 * MIB, 897 * MIB]
    assert told["metrics"] == {"memory_total_bytes": 900.0 * MIB, "memory_used_bytes": 3.0 * MIB}
    assert told["preflight"] == []
    assert told["default"] == "acme:0"
    assert told["event"] is True
    assert told["emptied"] is True
    assert told["absent"].startswith("device 'acme:2' is not here: Paddle sees 2 of them")
    assert told["busy"] == "device acme:1 has not finished its work within 0.3 s"


def test_a_model_runs_on_the_example_with_the_same_answers(package: Path, tmp_path: Path) -> None:
    on_cpu = result(GENERATED, "cpu")
    told = result(GENERATED, "acme:1", **with_package(package, tmp_path / "sys"))
    assert told["answers"] == on_cpu["answers"]
    assert told["kernels"] == {"silu_mul": "acme.silu_mul", "int8_linear": "int8_gemm"}


def test_the_example_profile_is_used_for_a_plug_in_of_its_type(profile_directory: Path) -> None:
    options = {"more": {"ACME_VISIBLE_DEVICES": "1"}, "visible_variable": "ACME_VISIBLE_DEVICES"}
    vendor, level, flag, absent = result(PROFILED, str(profile_directory), type_name="acme", **options)
    assert (vendor, level, flag) == ("Acme", "error", "0")
    assert "this process sees acme:0; ACME_VISIBLE_DEVICES=1 leaves this process 1 device" in absent


def test_the_example_profile_has_every_key_but_that_of_another_mechanism(acme: DeviceProfile, profile_directory: Path) -> None:
    assert profile_of("acme", extra=profile_directory) == acme
    assert [field.name for field in dataclasses.fields(acme) if not getattr(acme, field.name)] == ["rocm"]


def test_the_example_profile_reads_the_example_output(acme: DeviceProfile) -> None:
    assert acme.monitor is not None
    told = parse(acme.monitor, block("text"))
    assert {index: list(figures.values()) for index, figures in told.items()} == {
        0: pytest.approx([4096 * MIB, 32768 * MIB, 0.37, 41, 88.5]),
        1: pytest.approx([0, 32768 * MIB, 0, 35, 50]),
    }


def test_the_example_tool_is_run(acme: DeviceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "acme-smi"
    tool.write_text(f"#!/bin/sh\n[ \"$*\" = --list ] && cat <<'END'\n{block('text')}END\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read_monitor(acme, 0, environ={"ACME_VISIBLE_DEVICES": "1,0"})["memory_used_bytes"] == 0
    assert read_monitor(acme, 1, environ={"ACME_VISIBLE_DEVICES": "1,0"})["power_watts"] == 88.5


def test_the_page_explains_every_key() -> None:
    known = set(DeviceProfile.__dataclass_fields__) - {"name"}
    assert known - rows("### The keys of a profile") == set()
    assert rows("Of `monitor`:") == set(Monitor.__dataclass_fields__)
    assert {name for name in Metric.__dataclass_fields__ if f"`{name}`" not in PAGE} == set()
