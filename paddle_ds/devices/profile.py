"""Profiles: what is known of a family of chips without asking it, as data. ``configs/devices/*.yaml``; no paddle here.

    npu.yaml -> DeviceProfile(name="npu", type="npu", mechanism="custom", plugin="paddle-custom-npu", ...)

A profile says how Paddle calls the chip, what to install, which variables choose among several, and how its vendor's tool
is read. It never says what the chip can do; that is asked of the device itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from paddle_ds.devices.profile_records import (
    Defaults,
    DeviceProfile,
    Metric,
    Monitor,
    Setting,
    VersionSet,
    WeightLayout,
)
from paddle_ds.errors import ConfigError, DeviceError

__all__ = [
    "Defaults",
    "DeviceProfile",
    "Metric",
    "Monitor",
    "Setting",
    "VersionSet",
    "WeightLayout",
    "hidden_by",
    "load_profile",
    "physical_index",
    "profile_directory",
    "profile_of",
    "profiles",
    "visible_indices",
]


def profile_directory() -> Path:
    """Where the profiles that come along lie: inside the package in a wheel, in ``configs/devices/`` in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "profiles"
    return inside if inside.is_dir() else here.parents[1] / "configs" / "devices"


def load_profile(path: Path) -> DeviceProfile:
    """The profile in the file at ``path``.

    Raises:
        ConfigError: unreadable, not YAML, an unknown or missing key, a value of the wrong type, an expression that is none.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(raw).__name__}")
    if "name" in raw:
        raise ConfigError(f"{path}: unknown key 'name'; a profile is called after its file")
    _refuse_unknown_keys(raw, DeviceProfile, str(path))
    try:
        profile = msgspec.convert({**raw, "name": path.stem}, DeviceProfile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    _check(profile, str(path))
    return profile


def profiles(extra: Path | None = None) -> dict[str, DeviceProfile]:
    """Every profile by name. Those in the directory ``extra`` come last and replace others of the same name.

    Raises:
        ConfigError: a file is wrong, or ``extra`` is no directory.
    """
    return dict(_profiles(extra))


@functools.lru_cache(maxsize=8)
def _profiles(extra: Path | None) -> tuple[tuple[str, DeviceProfile], ...]:
    if extra is not None and not extra.is_dir():
        raise ConfigError(f"{extra}: no such directory of device profiles")
    found: dict[str, DeviceProfile] = {}
    for directory in (profile_directory(), extra):
        for path in sorted(directory.glob("*.yaml")) if directory is not None else ():
            found.pop(path.stem, None)
            found[path.stem] = load_profile(path)
    return tuple(found.items())


def profile_of(device_type: str, *, rocm: bool = False, extra: Path | None = None) -> DeviceProfile | None:
    """The profile of the devices that Paddle calls ``device_type`` (or that only we call so: ``dcu``); ``None``: there is none.

    Args:
        rocm: whether Paddle was built for ROCm, in which ``gpu`` means another vendor's chip.
        extra: see :func:`profiles`; a profile of one's own is preferred.
    """
    known = profiles(extra)
    if device_type in known and known[device_type].type != device_type:
        return known[device_type]
    of_type = [profile for profile in known.values() if profile.type == device_type]
    return next((profile for profile in reversed(of_type) if profile.rocm == rocm or profile.mechanism != "gpu"), None)


def visible_indices(profile: DeviceProfile, environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """The machine's numbers of the devices that a process with this environment sees, in its order.

    ``None``: nothing restricts it (no such variable, or ``all``), or the devices are named by identifiers that only the vendor's
    software can translate (``GPU-8f3e…``, ``MIG-…``). ``()``: it sees none (an empty value, or ``-1``).

    Raises:
        DeviceError: the value is not a list of numbers, or names one twice.
    """
    variable = _visibility(profile, environ)
    if variable is None:
        return None
    shown = f"{variable}={environ[variable]}"
    parts = [part.strip() for part in environ[variable].split(",")]
    if parts in ([""], ["-1"]):
        return ()
    if parts == ["all"] or all(re.fullmatch("[A-Z]+-.+", part) for part in parts):
        return None
    for part in parts:
        if not re.fullmatch("[0-9]{1,4}", part):
            raise DeviceError(f"{shown}: {part!r} is not the number of a device; expected numbers, such as {variable}=0,1")
    indices = tuple(int(part) for part in parts)
    twice = [index for index in indices if indices.count(index) > 1]
    if twice:
        raise DeviceError(f"{shown}: device {twice[0]} stands there twice; expected each once, such as {variable}=0,1")
    return indices


def physical_index(profile: DeviceProfile, index: int, environ: Mapping[str, str]) -> int | None:
    """The machine's number of the device that a process with this environment calls ``index``; ``None``: that cannot be told.

    Raises:
        DeviceError: see :func:`visible_indices`.
    """
    visible = visible_indices(profile, environ)
    if visible is not None:
        return visible[index] if 0 <= index < len(visible) else None
    variable = _visibility(profile, environ)
    return index if variable is None or environ[variable].strip() == "all" else None


def hidden_by(profile: DeviceProfile, index: int, environ: Mapping[str, str]) -> str:
    """A sentence on the variable because of which there is no device ``index``; empty where none hides it.

    Raises:
        DeviceError: see :func:`visible_indices`.
    """
    visible = visible_indices(profile, environ)
    variable = _visibility(profile, environ)
    if visible is None or variable is None or index < len(visible):
        return ""
    shown = f"{variable}={environ[variable]}"
    if not visible:
        return f"{shown} hides every device; unset it, or list the devices to use, such as {variable}=0"
    names = f"{profile.type}:0" if len(visible) == 1 else f"{profile.type}:0 to {profile.type}:{len(visible) - 1}"
    leaves = "1 device" if len(visible) == 1 else f"{len(visible)} devices"
    return (
        f"{shown} leaves this process {leaves}, {names}, counted in the order of that list, so there is no {profile.type}:{index}"
    )


def _visibility(profile: DeviceProfile, environ: Mapping[str, str]) -> str | None:
    return next((name for name in profile.visible_devices if name in environ), None)


def _refuse_unknown_keys(raw: Any, cls: type, where: str) -> None:
    """Unknown keys in ``raw``, which is to become a ``cls``; types are none of its business."""
    if not isinstance(raw, Mapping):
        return
    hints = typing.get_type_hints(cls)
    for key, value in raw.items():
        if key not in hints:
            known = ", ".join(name for name in hints if name != "name" or cls is not DeviceProfile)
            raise ConfigError(f"{where}: unknown key {key!r}; known: {known}")
        for record in _records(hints[key]):
            if typing.get_origin(hints[key]) is tuple:
                entries = list(enumerate(value)) if isinstance(value, list) else []
            elif typing.get_origin(hints[key]) is Mapping:
                entries = list(value.items()) if isinstance(value, Mapping) else []
            else:
                _refuse_unknown_keys(value, record, f"{where}: {key}")
                continue
            for place, entry in entries:
                _refuse_unknown_keys(entry, record, f"{where}: {key}[{place}]")


def _records(hint: Any) -> list[type]:
    """Dataclasses in a type such as ``tuple[Metric, ...]``."""
    return [part for part in (hint, *typing.get_args(hint)) if isinstance(part, type) and dataclasses.is_dataclass(part)]


def _check(profile: DeviceProfile, where: str) -> None:
    for key, settings in (("variables", profile.variables), ("flags", profile.flags)):
        for name in settings:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name.startswith("FLAGS_") != (key == "flags"):
                rule = (
                    "a name that begins with FLAGS_" if key == "flags" else "a variable that is no flag (those are under 'flags')"
                )
                raise ConfigError(f"{where}: {key}: {name!r} is wrong; expected {rule}")
    if not profile.visible_devices:
        raise ConfigError(f"{where}: visible_devices is empty; expected the name of at least one variable")
    if not 0 < profile.defaults.memory_fraction <= 1:
        raise ConfigError(
            f"{where}: defaults.memory_fraction is {profile.defaults.memory_fraction}; expected above 0 and up to 1"
        )
    for key in ("max_running_requests", "max_batch_tokens"):
        if getattr(profile.defaults, key) < 1:
            raise ConfigError(f"{where}: defaults.{key} is {getattr(profile.defaults, key)}; expected at least 1")
    if profile.monitor is not None:
        _check_monitor(profile.monitor, f"{where}: monitor")


def _check_monitor(monitor: Monitor, where: str) -> None:
    if not monitor.command:
        raise ConfigError(f"{where}.command is empty; expected a program and its arguments")
    if "index" not in _compiled(monitor.record, f"{where}.record").groupindex:
        raise ConfigError(f"{where}.record: {monitor.record!r} has no group called index, which says whose record it is")
    for metric in monitor.metrics:
        if monitor.format == "text" and _compiled(metric.read, f"{where}.metrics: {metric.name}").groups != 1:
            raise ConfigError(f"{where}.metrics: {metric.name}: {metric.read!r} must have one group, which is the figure")
        if not 0 < metric.factor < math.inf:
            raise ConfigError(f"{where}.metrics: {metric.name}: factor is {metric.factor}; expected a number above 0")


def _compiled(expression: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(expression, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"{where}: {expression!r} is not a regular expression: {error}") from error
