"""The process that loads Paddle for the doctor. It writes a finding a line, as JSON.

python -m paddle_ds.cli.checks.in_paddle QUESTIONS
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from paddle_ds.cli.checks import model, operators
from paddle_ds.cli.checks.context import Context, Questions, run
from paddle_ds.cli.checks.finding import Finding, Level
from paddle_ds.devices import environment, plugins
from paddle_ds.devices.base import Device
from paddle_ds.devices.failures import summary
from paddle_ds.devices.flags import FlagReport, apply_flags, before_paddle, ignored_variables
from paddle_ds.devices.profile import DeviceProfile, hidden_by, profiles, visible_indices
from paddle_ds.errors import ConfigError, DeviceError, PaddleDSError

_TOPIC = "devices"
_GB = 1e9


def examine(context: Context, environ: Mapping[str, str]) -> Iterator[Finding]:
    """All that needs Paddle.

    Args:
        environ: the user's variables, without what is set for Paddle.
    """
    yield from run([(_TOPIC, libraries)], context)
    for finding in run([(_TOPIC, loaded)], context):
        yield finding
        if finding.level == "error":
            return

    missing = list(run([(_TOPIC, asked_for)], context))
    if not missing:  # flags first: once there is a tensor, the allocator's are decided
        yield from run([("flags", configured)], context)
    yield from run([(_TOPIC, visible), (_TOPIC, tools), (_TOPIC, present)], context)
    yield from missing
    if not missing:
        yield from run([("model", model.on_device), ("operators", operators.check)], context)
    yield from run([("flags", functools.partial(ignored, environ))], context)


def libraries(context: Context) -> Iterator[Finding]:
    """Plug-in libraries where Paddle looks for them, each tried in a process of its own."""
    given = os.environ.get(plugins.VARIABLE, "")
    fix = f"set {plugins.VARIABLE} to the directory that holds the plug-in's library, or unset it"
    if given and not os.path.isdir(given):
        several = ": Paddle takes it as one path, not as a list of several" if ":" in given else ""
        yield Finding("plugin_root_wrong", _TOPIC, "warning", f"{plugins.VARIABLE}={given} is not a directory{several}", fix)
        return
    if given and not list(Path(given).glob("lib*.so")):
        yield Finding("plugin_root_wrong", _TOPIC, "warning", plugins.where(), fix)
    for plugin in libraries_here():
        if plugin.problem:
            text = f"{plugin.path} is not loaded: {plugin.problem}"
            fix = "install the plug-in that was made for this Paddle, with its chip's toolkit, or remove the library"
            yield Finding("plugin_not_loaded", _TOPIC, "warning", text, fix)
        else:
            yield Finding("plugin_found", _TOPIC, "ok", f"{plugin.path} can be loaded")


def loaded(context: Context) -> Iterator[Finding]:
    """Load Paddle, and see that installed plug-ins have shown it a device type."""
    current = context.settings()
    with contextlib.suppress(ConfigError):  # the check of the model has told
        os.environ.update(before_paddle(context.engine_config().memory.wanted()))
    environment.prepare(current.num_threads, model.device_name(context), current.device_profiles)
    os.environ.setdefault("GLOG_minloglevel", "1")  # what the loader says of each library reads like errors
    try:
        environment.import_paddle()
        import paddle

        types = list(paddle.device.get_all_custom_device_type() or [])
    except Exception as error:
        bad = [plugin.path for plugin in libraries_here() if plugin.problem]  # one that cannot be opened is enough
        fix = "install it anew, and what it is linked against (apt-get install libgomp1)"
        if bad:
            fix = f"remove {' and '.join(map(str, bad))}, or install what it is linked against; or unset {plugins.VARIABLE}"
        text = error.message if isinstance(error, PaddleDSError) else f"{type(error).__name__}: {summary(str(error))}"
        yield Finding("paddle_unusable", _TOPIC, "error", f"Paddle cannot be imported: {text}", fix)
        return
    none = f"none ({plugins.where()})"
    yield Finding("devices", _TOPIC, "ok", f"cpu; plug-ins: {', '.join(types) or none}")
    for profile in _known(context):
        if profile.plugin and context.version(profile.plugin) and profile.type not in types:
            text = (
                f"{profile.plugin} {context.version(profile.plugin)} is installed, but Paddle has no device type {profile.type}: "
                f"{plugins.where()}"
            )
            fix = f"unset {plugins.VARIABLE} where it leads elsewhere, or install the plug-in anew: {_install(profile)}"
            yield Finding("plugin_not_loaded", _TOPIC, "warning", text, fix)
    if not types and _usable():
        names = ", ".join(str(plugin.path) for plugin in _usable())
        text = (
            f"{names} can be loaded, but Paddle has got no device type from it: there is no such device, a variable hides all of "
            "them, or it was made for another Paddle"
        )
        fix = "see what the chip's own tool says, and what is said of variables below"
        yield Finding("plugin_not_loaded", _TOPIC, "warning", text, fix)


def visible(context: Context) -> Iterator[Finding]:
    """Variables that choose among the devices which this Paddle can drive."""
    for profile in _drivable(context):
        variable = next((name for name in profile.visible_devices if name in os.environ), None)
        if variable is None:
            continue
        told = f"{variable}={os.environ[variable]}"
        try:
            indices = visible_indices(profile, os.environ)
        except DeviceError as error:
            yield Finding("visible_devices_wrong", _TOPIC, "warning", error.message, f"correct or unset {variable}")
            continue
        if indices == ():
            fix = f"unset {variable}, or list the devices to use, such as {variable}=0"
            yield Finding("devices_hidden", _TOPIC, "warning", f"{told} hides every {profile.type} from this process", fix)
        else:
            which = "all" if indices is None else f"{len(indices)}, counted from {profile.type}:0 in that order"
            yield Finding("devices_visible", _TOPIC, "ok", f"{told} lets this process see {which}")


def tools(context: Context) -> Iterator[Finding]:
    """A vendor's tool where Paddle cannot drive that vendor's devices: perhaps a chip that nobody has set up for Paddle."""
    drivable = {profile.name for profile in _drivable(context)}
    for profile in _known(context):
        names = (profile.monitor.command[0], *profile.monitor.alternatives) if profile.monitor else ()
        tool = next(filter(shutil.which, names), None)
        if tool is not None and profile.name not in drivable:
            text = f"{tool} is here, but this Paddle cannot drive what it is for ({profile.vendor}): {_install(profile)}"
            yield Finding("device_tool_found", _TOPIC, "ok", text)


def present(context: Context) -> Iterator[Finding]:
    """Every device other than the CPU: free memory, capabilities, and what will go wrong."""
    from paddle_ds.devices.discovery import available

    for device in available(_extra(context)):
        if device.type != "cpu":
            yield from run([(_TOPIC, functools.partial(_described, device))], context)


def _described(device: Device, context: Context) -> Iterator[Finding]:
    can = device.capabilities
    memory = "tells no memory"
    if "memory_stats" in can.ops:
        stats = device.memory_stats()
        memory = f"{stats.available_bytes / _GB:.1f} of {stats.total_bytes / _GB:.1f} GB free"
    has = ", ".join(sorted(can.ops)) or "nothing beyond plain operators"
    lacks = "; ".join(f"no {name}: {reason}" for name, reason in sorted(can.missing.items()))
    types = ", ".join(sorted(can.dtypes)) or "no type at all"
    text = f"{device.name}: {memory}; matrix products in {types}; has {has}" + (f" ({lacks})" if lacks else "")
    yield Finding("device", _TOPIC, "ok", text)
    for problem in device.preflight():
        # what keeps a device from being used is an error for who wants to use it
        level: Level = "error" if problem.level == "error" and model.device_name(context) == device.name else "warning"
        yield Finding("device_problem", _TOPIC, level, problem.text, problem.fix)


def asked_for(context: Context) -> Iterator[Finding]:
    """The device that was asked for is here."""
    from paddle_ds.devices.discovery import open_device, parse

    name = model.device_name(context)
    try:
        open_device(name, _extra(context))
    except PaddleDSError as error:
        fix = "name a device that is here, or make it appear as the message says"
        with contextlib.suppress(DeviceError):  # the name or the variable is wrong, which was told
            device_type, index = parse(name)
            known = [profile for profile in _drivable(context) if device_type in (profile.name, profile.type)]
            fix = next(filter(None, (hidden_by(profile, index, os.environ) for profile in known)), fix)
        yield Finding("device_not_found", _TOPIC, "error", error.message, fix)


def configured(context: Context) -> Iterator[Finding]:
    """Flags of the configuration file, applied and tried out as the engine does it."""
    from paddle_ds.devices.discovery import open_device

    try:
        config = context.engine_config()
    except ConfigError:
        return  # the check of the model has told
    wanted = config.memory.wanted()
    try:
        reports = apply_flags(wanted, open_device(config.device, _extra(context)), strict=config.strict) if wanted else []
    except ConfigError as error:
        yield Finding("config_wrong", "flags", "error", error.message, "correct the section memory of the configuration file")
        return
    for report in reports:
        if report.status == "effective":
            yield Finding("flag_effective", "flags", "ok", _reported(report, "of the configuration"))
        else:
            yield _ineffective(report, "of the configuration", "take it out")


def ignored(environ: Mapping[str, str], context: Context) -> Iterator[Finding]:
    """Variables ``FLAGS_*`` that do nothing."""
    reports = ignored_variables(environ)
    for report in reports:
        yield _ineffective(report, "of the environment", "unset it")
    given = [name for name in environ if name.startswith("FLAGS_")]
    if not reports:
        told = ", ".join(sorted(given)) if given else "none is set"
        yield Finding("flags", "flags", "ok", f"Paddle's flags in the environment: {told}")


def _install(profile: DeviceProfile) -> str:
    return " ".join(profile.install.split())


def _ineffective(report: FlagReport, where: str, away: str) -> Finding:
    if report.replacement:
        return Finding("flag_replaced", "flags", "warning", _reported(report, where), f"{away}, and use {report.replacement}")
    return Finding("flag_ignored", "flags", "warning", _reported(report, where), f"{away}, or correct it")


def _reported(report: FlagReport, where: str) -> str:
    return f"{report.name}={report.requested} {where}: {report.status}: {report.reason}"


def _extra(context: Context) -> Path | None:
    given = context.settings().device_profiles
    return Path(given) if given else None


def _known(context: Context) -> list[DeviceProfile]:
    return list(profiles(_extra(context)).values())


@functools.cache
def libraries_here() -> tuple[plugins.Plugin, ...]:
    """Every library where Paddle looks for plug-ins; trying one takes seconds, so it is done once."""
    return tuple(plugins.find())


def _usable() -> list[plugins.Plugin]:
    return [plugin for plugin in libraries_here() if not plugin.problem]


def _drivable(context: Context) -> list[DeviceProfile]:
    """Profiles of device types that the loaded Paddle has, or would have: a type of which no device is visible, it forgets."""
    import paddle

    rocm = paddle.device.is_compiled_with_rocm()
    types = set(paddle.device.get_all_custom_device_type() or [])
    types |= {"gpu"} if paddle.device.is_compiled_with_cuda() or rocm else set()
    types |= {"xpu"} if paddle.device.is_compiled_with_xpu() else set()
    forgotten = bool(_usable()) and not types

    def drivable(profile: DeviceProfile) -> bool:
        if profile.mechanism == "custom":
            return profile.type in types or forgotten or bool(profile.plugin and context.version(profile.plugin))
        return profile.type in types and (profile.mechanism != "gpu" or profile.rocm == rocm)

    return [profile for profile in _known(context) if drivable(profile)]


def main() -> None:
    """Findings go to the standard output as it was; what Paddle and plug-ins print there goes to the standard error."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    context = Context(Questions(**json.loads(sys.argv[1])))
    for finding in examine(context, dict(os.environ)):
        print(json.dumps(dataclasses.asdict(finding)), file=report, flush=True)
    os._exit(0)  # Python's own way out would wait for a device that does not answer


if __name__ == "__main__":
    main()
