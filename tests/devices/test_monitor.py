"""Vendors' tools are called and read as the profiles say; nothing they do harms the caller. Samples: ``monitor_samples.py``."""

from __future__ import annotations

import os
import shlex
import stat
import time
from pathlib import Path

import pytest

from devices import monitor_samples as samples
from paddle_ds.devices import monitor
from paddle_ds.devices.monitor import parse, read_monitor
from paddle_ds.devices.profile import DeviceProfile, Monitor, profiles

MIB = 1 << 20
#: profile -> tool's number of a device -> its figures in the sample
EXPECTED = {
    "npu": {
        0: {"memory_used_bytes": 12288 * MIB, "memory_total_bytes": 65536 * MIB, "utilization_ratio": 0.37}
        | {"temperature_celsius": 41, "power_watts": 91.5},
        1: {"memory_used_bytes": 3316 * MIB, "memory_total_bytes": 65536 * MIB, "utilization_ratio": 0}
        | {"temperature_celsius": 44, "power_watts": 88},
    },
    "mlu": {
        0: {"memory_used_bytes": 4096 * MIB, "memory_total_bytes": 23374 * MIB, "utilization_ratio": 0.12}
        | {"temperature_celsius": 36, "power_watts": 110},
        1: {"memory_used_bytes": 0, "memory_total_bytes": 23374 * MIB, "utilization_ratio": 0}
        | {"temperature_celsius": 33, "power_watts": 71},
    },
    "xpu": {
        0: {"memory_used_bytes": 24576 * MIB, "memory_total_bytes": 98304 * MIB, "utilization_ratio": 0.63}
        | {"temperature_celsius": 41},
        1: {"memory_used_bytes": 0, "memory_total_bytes": 98304 * MIB, "utilization_ratio": 0, "temperature_celsius": 38},
    },
    "dcu": {
        0: {"memory_used_bytes": 2048 * MIB, "memory_total_bytes": 65520 * MIB, "utilization_ratio": 0.25}
        | {"temperature_celsius": 43, "power_watts": 81},
        1: {"memory_used_bytes": 2 * MIB, "memory_total_bytes": 65520 * MIB, "utilization_ratio": 0}
        | {"temperature_celsius": 35, "power_watts": 74},
    },
    "gcu": {
        0: {"memory_used_bytes": 8192 * MIB, "memory_total_bytes": 42976 * MIB, "utilization_ratio": 0.585}
        | {"temperature_celsius": 42, "power_watts": 104},
        1: {"memory_used_bytes": 0, "memory_total_bytes": 42976 * MIB, "utilization_ratio": 0}
        | {"temperature_celsius": 34, "power_watts": 50},
    },
    "iluvatar_gpu": {
        # the first device of a pair does not tell its power
        0: {"memory_used_bytes": 8192 * MIB, "memory_total_bytes": 32768 * MIB, "utilization_ratio": 0.71}
        | {"temperature_celsius": 44},
        1: {"memory_used_bytes": 64 * MIB, "memory_total_bytes": 32768 * MIB, "utilization_ratio": 0}
        | {"temperature_celsius": 39, "power_watts": 112},
    },
    "metax_gpu": {
        0: {"memory_used_bytes": 16384 * MIB, "memory_total_bytes": 65536 * MIB, "utilization_ratio": 0.8}
        | {"temperature_celsius": 48, "power_watts": 210},
        1: {"memory_used_bytes": 858 * MIB, "memory_total_bytes": 65536 * MIB, "utilization_ratio": 0}
        | {"temperature_celsius": 34, "power_watts": 97},
    },
    "intel_hpu": {
        5: {"memory_used_bytes": 24576 * MIB, "memory_total_bytes": 98304 * MIB, "utilization_ratio": 0.33}
        | {"temperature_celsius": 47, "power_watts": 231},
        4: {"memory_used_bytes": 768 * MIB, "memory_total_bytes": 98304 * MIB, "utilization_ratio": 0}
        | {"temperature_celsius": 29, "power_watts": 86},
    },
    "gpu": {
        0: {"memory_used_bytes": 4096 * MIB, "memory_total_bytes": 81920 * MIB, "utilization_ratio": 0.66}
        | {"temperature_celsius": 51, "power_watts": 287.41},
        1: {"memory_used_bytes": 3 * MIB, "memory_total_bytes": 81920 * MIB, "utilization_ratio": 0, "temperature_celsius": 30},
    },
}


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_told", set())
    monkeypatch.setattr(monitor, "_stuck", {})


def monitor_of(name: str) -> Monitor:
    found = profiles()[name].monitor
    assert found is not None
    return found


def with_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> DeviceProfile:
    """The profile called ``name``, in a world whose only programs are a shell's and that profile's tool, which is ``script``."""
    program = tmp_path / monitor_of(name).command[0]
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return profiles()[name]


def printing(tmp_path: Path, text: str) -> str:
    path = tmp_path / "sample.txt"
    path.write_text(text, encoding="utf-8")
    return f"cat {shlex.quote(str(path))}"


def test_every_profile_has_a_sample() -> None:
    assert set(samples.SAMPLES) == set(EXPECTED) == set(profiles())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_output_of_the_tool_becomes_figures(name: str) -> None:
    found = parse(monitor_of(name), samples.SAMPLES[name])
    assert found == {index: pytest.approx(figures) for index, figures in EXPECTED[name].items()}


def test_an_older_hy_smi_counts_in_bytes() -> None:
    used = {"memory_used_bytes": 1048576, "memory_total_bytes": 17163091968}
    expected = {0: pytest.approx(used | {"utilization_ratio": 0.5, "temperature_celsius": 30})}
    assert parse(monitor_of("dcu"), samples.DCU_OLDER) == expected


def test_an_older_efsmi_has_other_names_and_no_power() -> None:
    used = {"memory_used_bytes": 1129 * MIB, "memory_total_bytes": 42976 * MIB}
    expected = {0: pytest.approx(used | {"utilization_ratio": 0, "temperature_celsius": 34})}
    assert parse(monitor_of("gcu"), samples.GCU_OLDER) == expected


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("text", ["", "\n\n", "no devices were found\n", "{", "[1, 2]", '{"card0": 3}', "| 0 |\n", "\x00\xff"])
def test_another_layout_gives_no_devices(name: str, text: str) -> None:
    assert parse(monitor_of(name), text) == {}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_output_cut_off_anywhere_never_raises(name: str) -> None:
    whole = samples.SAMPLES[name]
    for length in range(0, len(whole), 7):
        for figures in parse(monitor_of(name), whole[:length]).values():
            assert set(figures) <= {metric.name for metric in monitor_of(name).metrics}


def test_an_index_that_is_no_number_is_no_device() -> None:
    odd = Monitor(command=("tool",), record=r"^(?P<index>\S+)$", metrics=(), source="")
    assert parse(odd, "one\n7\n") == {7: {}}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_tool_is_run_and_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f'printf "%s\\n" "$@" > {tmp_path}/arguments\n' + printing(tmp_path, samples.SAMPLES[name])
    profile = with_tool(tmp_path, monkeypatch, name, script)
    index = max(EXPECTED[name])
    assert read_monitor(profile, index, environ={}) == pytest.approx(EXPECTED[name][index])
    assert tuple((tmp_path / "arguments").read_text().split("\n")[:-1]) == (monitor_of(name).command[1:] or ("",))


def test_the_device_is_found_by_the_machines_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = with_tool(tmp_path, monkeypatch, "npu", printing(tmp_path, samples.NPU))
    assert read_monitor(profile, 0, environ={"ASCEND_RT_VISIBLE_DEVICES": "1"}) == pytest.approx(EXPECTED["npu"][1])


def test_a_tool_is_found_by_its_other_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = with_tool(tmp_path, monkeypatch, "dcu", printing(tmp_path, samples.DCU))
    (tmp_path / "hy-smi").rename(tmp_path / "rocm-smi")
    assert read_monitor(profile, 1, environ={}) == pytest.approx(EXPECTED["dcu"][1])


def reason(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.getMessage() == "monitor.silent"]
    because: str = record.paddle_ds_fields["because"]  # type: ignore[attr-defined]
    return because


@pytest.mark.parametrize(
    ("script", "because"),
    [
        ("echo 'dcmi model initialized failed' >&2; exit 3", "ended with status 3: dcmi model initialized failed"),
        ("exit 1", "ended with status 1"),
        ("echo 'something new'", "another layout"),
        ("kill -9 $$", "ended with status -9"),
    ],
)
def test_a_tool_that_fails_gives_nothing_and_one_line_of_log(
    script: str, because: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    profile = with_tool(tmp_path, monkeypatch, "npu", script)
    for _ in range(3):
        assert read_monitor(profile, 0, environ={}) == {}
    assert because in reason(caplog)


def test_a_device_the_tool_does_not_know_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    profile = with_tool(tmp_path, monkeypatch, "npu", printing(tmp_path, samples.NPU))
    assert read_monitor(profile, 5, environ={}) == {}
    assert "0, 1, not 5" in reason(caplog)


def test_an_absent_tool_gives_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_monitor(profiles()["npu"], 0, environ={}) == {}
    assert reason(caplog) == "there is no npu-smi"


@pytest.mark.parametrize("value", ["zero", "GPU-8f3e2d1c", "-1"])
def test_a_visibility_that_does_not_say_which_device_it_is_gives_nothing(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    profile = with_tool(tmp_path, monkeypatch, "gpu", printing(tmp_path, samples.GPU))
    assert read_monitor(profile, 0, environ={"CUDA_VISIBLE_DEVICES": value}) == {}
    assert reason(caplog)


def test_bytes_that_are_no_text_are_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd").write_bytes(b"\xff\xfe\n" + samples.NPU.encode())
    profile = with_tool(tmp_path, monkeypatch, "npu", f"cat {tmp_path}/odd")
    assert read_monitor(profile, 0, environ={}) == pytest.approx(EXPECTED["npu"][0])


def test_a_tool_that_hangs_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # the child keeps the pipe open: killing the tool alone would not end the wait
    profile = with_tool(tmp_path, monkeypatch, "npu", f"sleep 300 & echo $! > {tmp_path}/child; wait")
    assert read_monitor(profile, 0, timeout_s=2, environ={}) == {}
    assert "did not answer within 2 s" in reason(caplog)
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(500):
        try:
            if child.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.02)
    pytest.fail("the child of the tool still runs")


def test_a_tool_that_cannot_be_killed_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a process that a driver holds survives SIGKILL; here the signal is lost on its way
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    monkeypatch.setattr(monitor, "_KILL_WAIT_S", 0.1)
    profile = with_tool(tmp_path, monkeypatch, "npu", f"echo started >> {tmp_path}/starts; exec sleep 300")
    try:
        assert read_monitor(profile, 0, timeout_s=2, environ={}) == {}
        assert read_monitor(profile, 0, timeout_s=2, environ={}) == {}
        assert (tmp_path / "starts").read_text() == "started\n"
    finally:
        for process in monitor._stuck.values():
            process.kill()
            process.communicate()


def test_every_figure_is_of_the_unit_that_its_name_says() -> None:
    for name in profiles():
        for metric in monitor_of(name).metrics:
            expected = {"bytes": (1, MIB), "ratio": (0.01,), "celsius": (1,), "watts": (1,)}[metric.name.rpartition("_")[2]]
            assert metric.factor in expected, (name, metric)


def test_words_of_the_tool_that_change_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    profile = with_tool(tmp_path, monkeypatch, "npu", "echo error at $$ >&2; exit 1")
    for _ in range(3):
        assert read_monitor(profile, 0, environ={}) == {}
    assert "ended with status 1: error at " in reason(caplog)
