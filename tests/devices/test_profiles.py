"""Profiles of chips: every file is whole and says where it has things from; wrong ones are refused by file and key."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from paddle_ds.devices import profile as module
from paddle_ds.devices.profile import (
    DeviceProfile,
    hidden_by,
    load_profile,
    physical_index,
    profile_directory,
    profile_of,
    profiles,
    visible_indices,
)
from paddle_ds.errors import ConfigError, DeviceError

ROOT = Path(__file__).parents[2]
#: profile -> page
PAGES = {
    "npu": "ascend.md",
    "mlu": "cambricon.md",
    "xpu": "kunlun.md",
    "dcu": "hygon.md",
    "gcu": "enflame.md",
    "iluvatar_gpu": "iluvatar.md",
    "metax_gpu": "metax.md",
    "gpu": "nvidia.md",
    "intel_hpu": "intel-gaudi.md",
}
NAMES = sorted(PAGES)
#: profile -> variable that is to be recommended, where more than one is read
MAIN_VARIABLES = {
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "mlu": "MLU_VISIBLE_DEVICES",
    "xpu": "XPU_VISIBLE_DEVICES",
    "dcu": "HIP_VISIBLE_DEVICES",
    "gcu": "TOPS_VISIBLE_DEVICES",
    "iluvatar_gpu": "CUDA_VISIBLE_DEVICES",
    "metax_gpu": "MACA_VISIBLE_DEVICES",
    "gpu": "CUDA_VISIBLE_DEVICES",
    "intel_hpu": "HABANA_VISIBLE_MODULES",
}


def changed(tmp_path: Path, *keys: str | int, to: Any) -> Path:
    """The profile of the NPU with another value under ``keys``."""
    raw = yaml.safe_load((profile_directory() / "npu.yaml").read_text(encoding="utf-8"))
    place = raw
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    path = tmp_path / "npu.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert str(path) in caught.value.message
    return caught.value.message


def test_the_chips_that_reach_paddle_have_profiles() -> None:
    assert sorted(profiles()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_found_by_the_name_of_its_device_type(name: str) -> None:
    profile = profiles()[name]
    assert profile.name == name
    assert profile_of(profile.type, rocm=profile.rocm) is profile


def test_dcu_is_the_gpu_of_a_paddle_built_for_rocm() -> None:
    assert profile_of("gpu") is profiles()["gpu"]
    assert profile_of("gpu", rocm=True) is profiles()["dcu"]
    assert profile_of("dcu") is profiles()["dcu"]
    assert profile_of("npu", rocm=True) is profiles()["npu"]
    assert profile_of("tpu") is None


@pytest.mark.parametrize("name", NAMES)
def test_everything_learnt_elsewhere_says_where(name: str) -> None:
    profile = profiles()[name]
    sources = [version.source for version in profile.versions]
    sources += [setting.source for setting in (*profile.variables.values(), *profile.flags.values())]
    sources += [profile.weight_layout.source] if profile.weight_layout else []
    sources += [profile.monitor.source] if profile.monitor else []
    assert profile.docs
    assert [text for text in (*sources, *profile.docs) if not re.fullmatch(r"https://[\w.-]+/\S*", text)] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_is_named_where_the_chip_needs_one(name: str) -> None:
    profile = profiles()[name]
    assert (profile.plugin is not None) == (profile.mechanism == "custom")
    assert profile.visible_devices[0] == MAIN_VARIABLES[name]
    # it goes into the sentences of errors
    assert "\n" not in profile.install
    assert profile.rocm is (name == "dcu")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_chip_says_what_its_profile_says(name: str) -> None:
    profile = profiles()[name]
    page = " ".join((ROOT / "docs" / "devices" / PAGES[name]).read_text(encoding="utf-8").split())
    said = [
        profile.vendor,
        *profile.chips,
        *profile.visible_devices,
        *profile.docs,
        *profile.environment(),
        profile.collective or "",
    ]
    said += [part for version in profile.versions for part in (version.paddle, version.source, version.driver or "")]
    said += [version.plugin or "" for version in profile.versions] + [version.toolkit or "" for version in profile.versions]
    said += [profile.plugin or "", profile.monitor.command[0] if profile.monitor else ""]
    said += profile.install.split(" && ")
    assert [text for text in said if text not in page] == []


def test_every_chip_is_in_the_table_of_the_index() -> None:
    page = (ROOT / "docs" / "devices" / "README.md").read_text(encoding="utf-8")
    assert [name for name, target in PAGES.items() if f"({target})" not in page or f"`{profiles()[name].type}" not in page] == []


def test_variables_and_flags_become_one_environment() -> None:
    environment = profiles()["npu"].environment()
    assert environment["FLAGS_npu_storage_format"] == "0"
    assert profiles()["intel_hpu"].environment() == {"PADDLE_DISTRI_BACKEND": "xccl", "PADDLE_XCCL_BACKEND": "intel_hpu"}


def test_profiles_need_no_paddle() -> None:
    program = (
        "import sys; from paddle_ds.devices import monitor, profile; profile.profiles(); "
        "monitor.read_monitor(profile.profiles()['npu'], 0); sys.exit('paddle' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize(
    ("keys", "unknown", "named"),
    [
        (("colour",), "red", "unknown key 'colour'; known: type, mechanism, vendor"),
        (("name",), "npu", "unknown key 'name'; a profile is called after its file"),
        (("defaults", "max_requests"), 4, "defaults: unknown key 'max_requests'; known: max_running_requests"),
        (("monitor", "regex"), "x", "monitor: unknown key 'regex'; known: command"),
        (("monitor", "metrics", 1, "unit"), "MiB", "monitor: metrics[1]: unknown key 'unit'"),
        (("versions", 0, "cann"), "8.0", "versions[0]: unknown key 'cann'"),
        (("flags", "FLAGS_npu_jit_compile", "reason"), "x", "flags[FLAGS_npu_jit_compile]: unknown key 'reason'"),
        (("weight_layout",), {"layout": "x"}, "weight_layout: unknown key 'layout'"),
    ],
)
def test_an_unknown_key_is_refused_by_name_wherever_it_stands(
    keys: tuple[str | int, ...], unknown: object, named: str, tmp_path: Path
) -> None:
    assert named in refusal(changed(tmp_path, *keys, to=unknown))


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("type",), 3, "type"),
        (("mechanism",), "plugin", "mechanism"),
        (("chips",), "910B", "chips"),
        (("versions", 0, "paddle"), 3.2, "versions[0].paddle"),
        (("versions",), {"paddle": "3.2.0"}, "versions"),
        (("defaults", "kv_dtype"), "fp8", "defaults.kv_dtype"),
        (("defaults", "max_batch_tokens"), True, "defaults.max_batch_tokens"),
        (("defaults", "max_batch_tokens"), 0, "defaults.max_batch_tokens is 0"),
        (("defaults", "memory_fraction"), 1.5, "defaults.memory_fraction is 1.5"),
        (("defaults", "memory_fraction"), float("nan"), "defaults.memory_fraction is nan"),
        (("flags",), {"npu_jit_compile": {"value": "0", "why": "", "source": ""}}, "'npu_jit_compile' is wrong"),
        (("variables",), {"FLAGS_x": {"value": "0", "why": "", "source": ""}}, "'FLAGS_x' is wrong"),
        (("flags", "FLAGS_npu_jit_compile"), {"value": "0", "why": "for speed"}, "source"),
        (("visible_devices",), [], "visible_devices is empty"),
        (("monitor", "command"), [], "monitor.command is empty"),
        (("monitor", "record"), "(", "monitor.record: '(' is not a regular expression"),
        (("monitor", "record"), r"(\d+)", "has no group called index"),
        (("monitor", "metrics", 0, "read"), r"\d+", "memory_used_bytes: '\\\\d+' must have one group"),
        (("monitor", "metrics", 0, "factor"), 0, "factor is 0"),
        (("monitor", "metrics", 0, "name"), "fan_speed", "monitor.metrics[0].name"),
        (("weight_layout",), {"algorithms": ["int8"], "source": "https://x"}, "weight_layout.algorithms[0]"),
        (("rocm",), "yes", "rocm"),
    ],
)
def test_a_wrong_value_is_refused_by_key(keys: tuple[str | int, ...], value: object, named: str, tmp_path: Path) -> None:
    assert named in refusal(changed(tmp_path, *keys, to=value))


@pytest.mark.parametrize("missing", ["type", "mechanism", "vendor", "chips", "install", "visible_devices", "defaults", "docs"])
def test_a_missing_key_is_refused_by_name(missing: str, tmp_path: Path) -> None:
    raw = yaml.safe_load((profile_directory() / "npu.yaml").read_text(encoding="utf-8"))
    del raw[missing]
    path = tmp_path / "npu.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert f"`{missing}`" in refusal(path)


@pytest.mark.parametrize("text", [b"", b"- npu", b"type: [", b"\xff\xfe\x00", b"type: 2024-99-99"])
def test_what_is_no_profile_is_refused_by_file(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "npu.yaml"
    path.write_bytes(text)
    assert refusal(path)


def test_an_absent_file_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml")


def test_profiles_of_ones_own_are_added_and_preferred(tmp_path: Path) -> None:
    changed(tmp_path, "vendor", to="Ours").rename(tmp_path / "our_npu.yaml")
    changed(tmp_path, "type", to="acme").rename(tmp_path / "acme.yaml")
    found = profiles(tmp_path)
    assert set(found) == {*NAMES, "our_npu", "acme"}
    assert profile_of("npu", extra=tmp_path) is found["our_npu"]
    acme = profile_of("acme", extra=tmp_path)
    assert acme is not None
    assert acme.name == "acme"
    assert set(profiles()) == set(NAMES)


def test_a_profile_of_ones_own_replaces_one_of_its_name(tmp_path: Path) -> None:
    changed(tmp_path, "vendor", to="Ours")
    assert profiles(tmp_path)["npu"].vendor == "Ours"
    assert len(profiles(tmp_path)) == len(NAMES)


def test_a_directory_of_profiles_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: no such directory of device profiles"):
        profiles(tmp_path / "none")


def test_in_a_wheel_the_profiles_lie_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "paddle_ds" / "devices"
    monkeypatch.setattr(module, "__file__", str(package / "profile.py"))
    assert profile_directory() == tmp_path / "configs" / "devices"
    (package / "profiles").mkdir(parents=True)
    assert profile_directory() == package / "profiles"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "seen"),
    [("0", (0,)), ("2,0", (2, 0)), (" 1 , 3 ", (1, 3)), ("", ()), ("-1", ()), ("all", None), ("GPU-8f3e2d1c,GPU-77aa", None)],
)
def test_the_variable_says_which_devices_are_visible(name: str, value: str, seen: tuple[int, ...] | None) -> None:
    profile = profiles()[name]
    assert visible_indices(profile, {MAIN_VARIABLES[name]: value}) == seen
    assert visible_indices(profile, {profile.visible_devices[-1]: value}) == seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["0;1", "0,,1", "0,", "one", "0-3", "1.0", "-2", "0,-1", "0,0", "0,GPU-1", "99999", "１"])
def test_a_malformed_variable_is_named_with_what_would_be_right(name: str, value: str) -> None:
    variable = MAIN_VARIABLES[name]
    with pytest.raises(DeviceError) as caught:
        visible_indices(profiles()[name], {variable: value})
    assert f"{variable}={value}" in caught.value.message
    assert f"such as {variable}=0,1" in caught.value.message


@pytest.mark.parametrize("name", NAMES)
def test_without_the_variable_nothing_is_hidden(name: str) -> None:
    profile = profiles()[name]
    assert visible_indices(profile, {"OTHER_VISIBLE_DEVICES": "x"}) is None
    assert hidden_by(profile, 5, {}) == ""
    assert physical_index(profile, 5, {}) == 5


def test_of_two_variables_the_first_one_counts() -> None:
    assert visible_indices(profiles()["xpu"], {"XPU_VISIBLE_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "1"}) == (3,)


NPU = "ASCEND_RT_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("value", "index", "physical"),
    [("2,5", 0, 2), ("2,5", 1, 5), ("2,5", 2, None), ("", 0, None), ("all", 3, 3), ("MIG-1", 0, None)],
)
def test_the_machine_counts_otherwise_than_the_process(value: str, index: int, physical: int | None) -> None:
    assert physical_index(profiles()["npu"], index, {NPU: value}) == physical


@pytest.mark.parametrize(
    ("value", "index", "said"),
    [
        ("2,5", 1, ""),
        (
            "2,5",
            2,
            f"{NPU}=2,5 leaves this process 2 devices, npu:0 to npu:1, counted in the order of that list, so there is no npu:2",
        ),
        ("4", 4, f"{NPU}=4 leaves this process 1 device, npu:0, counted in the order of that list, so there is no npu:4"),
        ("", 0, f"{NPU}= hides every device; unset it, or list the devices to use, such as {NPU}=0"),
        ("-1", 0, f"{NPU}=-1 hides every device; unset it, or list the devices to use, such as {NPU}=0"),
        ("all", 7, ""),
    ],
)
def test_a_hidden_device_is_explained(value: str, index: int, said: str) -> None:
    assert hidden_by(profiles()["npu"], index, {NPU: value}) == said


def test_a_profile_cannot_be_changed() -> None:
    profile: DeviceProfile = profiles()["npu"]
    with pytest.raises(AttributeError):
        profile.vendor = "x"  # type: ignore[misc]
