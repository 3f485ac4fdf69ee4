"""The installed plug-in (or build of Paddle) for a chip against the sets of versions that its profile has found documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_ds.cli.checks import pins
from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding

if TYPE_CHECKING:
    from paddle_ds.devices.profile import DeviceProfile, VersionSet

_TOPIC = "versions"


def check(context: Context) -> Iterator[Finding]:
    """A line for each chip whose plug-in or build is installed."""
    from paddle_ds.devices.profile import profiles

    extra = context.settings().device_profiles
    for profile in profiles(Path(extra) if extra else None).values():
        package = next((name for name in _packages(profile) if context.version(name)), None)
        if package is not None:
            yield _against(profile, package, context)


def _packages(profile: DeviceProfile) -> list[str]:
    """The plug-in; for a chip that Paddle is built for, the builds in the command that installs it."""
    if profile.plugin is not None:
        return [profile.plugin]
    return [name for name in pins.PADDLE_BUILDS[1:] if re.search(rf"\b{name}\b", profile.install)]


def _against(profile: DeviceProfile, package: str, context: Context) -> Finding:
    plugin = context.version(profile.plugin) if profile.plugin else None
    builds = pins.PADDLE_BUILDS if profile.plugin else (package,)
    paddle = next((version for version in map(context.version, builds) if version), None)
    here = f"Paddle {paddle or '(none)'}" + (f" with {package} {plugin}" if plugin else f" ({package})")
    for known in profile.versions:
        if _same(known.paddle, paddle) and (known.plugin is None or _same(known.plugin, plugin)):
            return Finding("device_versions", _TOPIC, "ok", f"{profile.name}: {here}, as {_described(known)}")
    sets = "; ".join(_described(known) for known in profile.versions) or "none"
    command = " ".join(profile.install.split())
    text = f"{profile.name}: {here} is in no set of versions that is known to work. Known: {sets}"
    return Finding("device_versions_unknown", _TOPIC, "warning", text, command)


def _described(known: VersionSet) -> str:
    plugin = f" with plug-in {known.plugin}" if known.plugin else ""
    beside = [part for part in (known.toolkit, f"driver {known.driver}" if known.driver else None) if part]
    needs = f" and {', '.join(beside)} (not looked for)" if beside else ""
    return f"Paddle {known.paddle}{plugin}{needs} in {known.source}"


def _same(known: str, here: str | None) -> bool:
    """Equal but for what a vendor adds after a plus."""
    from packaging.version import InvalidVersion, Version

    if here is None:
        return False
    try:
        return Version(known).public == Version(here).public
    except InvalidVersion:
        return known == here
