"""Apply memory flags, and tell for each what became of it.

    before_paddle(wanted)            variables that must stand in the environment when Paddle is loaded
    apply_flags(wanted, device)      set, probe, report; before the first tensor is made
    ignored_variables()              FLAGS_* of the environment that Paddle passes over without a word

``wanted`` is :meth:`paddle_ds.config.memory.MemoryConfig.wanted`. A variable that the user has set wins over it.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
from collections.abc import Mapping
from typing import Literal

from paddle_ds.config.memory import FlagValue
from paddle_ds.devices import flag_store as store
from paddle_ds.devices import flag_table
from paddle_ds.devices.base import Device
from paddle_ds.devices.failures import translating
from paddle_ds.devices.flag_old_names import GPU_ONLY
from paddle_ds.devices.flag_probes import Prober, kind_of
from paddle_ds.devices.flag_table import Flag, Kind
from paddle_ds.errors import ConfigError
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

Status = Literal["effective", "no effect here", "unknown to this Paddle", "replaced"]

_SELECTED = re.compile(r"FLAGS_selected_[a-z_]+s")
#: read from the environment by Python modules of Paddle, so that its table of flags does not have them
_READ_BY_PYTHON = re.compile(
    r"FLAGS_(selected_[a-z_]+s|START_PORT|FIXED_PORT|LAUNCH_BARRIER|nccl_nrings|stop_check_timeout|pp_check_naninf|trace_api|"
    r"enable_tensor_fusion|enable_moe_utils|enable_auto_recompute|(dist|pipeline|prim|print|profile|rpc|shard)_\w+)"
)


@dataclasses.dataclass(frozen=True)
class FlagReport:
    """What became of one flag.

    Attributes:
        value: what Paddle says now; ``None`` where it has no such flag.
        replacement: the name that does today what was asked for; empty where there is none.
    """

    name: str
    requested: FlagValue
    value: FlagValue | None
    status: Status
    reason: str
    replacement: str = ""


def before_paddle(wanted: Mapping[str, FlagValue], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that must stand in the environment of a process before it loads Paddle. Those that stand there are left alone.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """
    environ = os.environ if environ is None else environ
    variables = {}
    for given, value in wanted.items():
        name = flag_table.canonical(given)
        row = flag_table.row(name)
        if row is not None:
            check(row, value)
        if name.startswith("FLAGS_") and flag_table.old_name(name) is None and name not in environ:
            variables[name] = store.as_variable(value)
    return variables


def apply_flags(wanted: Mapping[str, FlagValue], device: Device, *, strict: bool = False) -> list[FlagReport]:
    """Set every flag, then find out what each does on ``device``. To be called before the first tensor is made on it.

    Probing makes small tensors, which decides the allocator's flags for the rest of the process.

    Args:
        strict: names that this Paddle does not know are an error.

    Raises:
        ConfigError: a value has the wrong type or is out of range; or ``strict``.
        DeviceError: the device failed while it was probed.
    """
    if not wanted:
        return []
    names = {flag_table.canonical(name): value for name, value in wanted.items()}
    for name, value in names.items():
        row = flag_table.row(name)
        if row is not None:
            check(row, value, kind_of(device))
    reports = {name: _without_probe(name, value) for name, value in names.items()}
    if strict:
        _refuse_unknown([report for report in reports.values() if report is not None])
    left = {name: value for name, value in names.items() if reports[name] is None}
    before = _set(left)
    with translating(device.name):
        prober = Prober(device, before, store.assign)
        result = [reports[name] or _probed(prober, name, left[name]) for name in names]
    for report in result:
        _log(report, device)
    return result


def ignored_variables(environ: Mapping[str, str] | None = None) -> list[FlagReport]:
    """Variables ``FLAGS_*`` that do nothing: old names, those of other builds, typing mistakes, values that Paddle misreads."""
    environ = os.environ if environ is None else environ
    found = []
    for name in sorted(name for name in environ if name.startswith("FLAGS_")):
        if _is_read_elsewhere(name):
            continue
        report = _without_probe(name, environ[name], look_at_environment=False)
        if report is None:
            report = _misread(name, environ[name]) or _idle(name, environ[name])
        if report is not None:
            found.append(report)
    return found


def check(row: Flag, value: FlagValue, kind: Kind | None = None) -> None:
    """
    Raises:
        ConfigError: ``value`` is not one that the flag can have, or would leave devices of ``kind`` unusable.
    """
    expected = _expected(row)
    right_type = isinstance(value, bool) == isinstance(row.default, bool) and isinstance(
        value, (int, float) if isinstance(row.default, float) else type(row.default)
    )
    if not right_type or (row.choices and value not in row.choices) or not _in_range(row, value):
        raise ConfigError(f"memory.flags: {row.name} is {value!r}; expected {expected}")
    if value == "thread_local" and kind == "custom":
        raise ConfigError(
            f"memory.flags: {row.name} is 'thread_local', which has no memory for devices of plug-ins: their first tensor would "
            "fail; expected auto_growth or naive_best_fit"
        )


def _expected(row: Flag) -> str:
    if row.choices:
        return "one of " + ", ".join(row.choices)
    if isinstance(row.default, bool):
        return "true or false"
    kind = "a whole number" if isinstance(row.default, int) else "a number"
    least = "" if row.at_least is None else f" of at least {row.at_least:g}"
    return kind + least + ("" if row.at_most is None else f" and at most {row.at_most:g}")


def _in_range(row: Flag, value: FlagValue) -> bool:
    if isinstance(value, (bool, str)):
        return True
    return (row.at_least is None or value >= row.at_least) and (row.at_most is None or value <= row.at_most)


def _without_probe(name: str, value: FlagValue, look_at_environment: bool = True) -> FlagReport | None:
    """The answer for a name that there is nothing to probe for."""
    registered = store.registered()
    if name in registered:
        text = os.environ.get(name) if look_at_environment else None
        if text is None or store.same(store.parsed(text, store.value_of(name)), value):
            return None
        return FlagReport(name, value, store.value_of(name), "no effect here", f"the environment has {name}={text}, which wins")
    if flag_table.row(name) in flag_table.LEVERS:
        return None
    old = flag_table.old_name(name)
    if old is not None and old.replacement:
        return FlagReport(name, value, None, "replaced", old.reason, old.replacement)
    if old is not None:
        return FlagReport(name, value, None, "unknown to this Paddle", f"{old.reason}; nothing replaces it")
    return FlagReport(name, value, None, "unknown to this Paddle", _why_unknown(name))


def _why_unknown(name: str) -> str:
    import paddle

    if _is_a_plug_ins(name):
        return "Paddle does not have it; the device's plug-in may read it from the environment"
    if name in GPU_ONLY:
        return "only builds for CUDA and ROCm have it"
    if _SELECTED.fullmatch(name):
        return "a variable of Paddle's launcher, not a flag; choose a device by the setting device, or by the chip's own variable"
    if flag_table.row(name) is not None:
        return f"Paddle {paddle.__version__} does not have it; other versions do"
    near = difflib.get_close_matches(name, {*store.registered(), *flag_table.names()}, n=3, cutoff=0.8)
    return f"Paddle {paddle.__version__} has no such flag" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _refuse_unknown(reports: list[FlagReport]) -> None:
    refused = ("unknown to this Paddle", "replaced")
    wrong = [report for report in reports if report.status in refused and not _is_a_plug_ins(report.name)]
    if wrong:
        told = [
            f"{report.name}: {report.reason}" + (f" (use {report.replacement})" if report.replacement else "") for report in wrong
        ]
        raise ConfigError("memory.flags: not known here: " + "; ".join(told))


def _set(wanted: Mapping[str, FlagValue]) -> dict[str, FlagValue]:
    """Set all that can be set; what Paddle had before. Rows of the pool need the chunk size, too, whether it is wanted or not."""
    before = {"FLAGS_auto_growth_chunk_size_in_mb": store.value_of("FLAGS_auto_growth_chunk_size_in_mb")}
    for name, value in wanted.items():
        if name in store.registered():
            before[name] = store.value_of(name)
            store.check_type(name, value)
            if store.is_writable(name):
                store.assign(name, value)
    return before


def _probed(prober: Prober, name: str, value: FlagValue) -> FlagReport:
    row = flag_table.row(name)
    now = store.value_of(name) if name in store.registered() else value
    if not store.same(now, value):
        why = "Paddle takes it from the environment alone" if not store.is_writable(name) else "Paddle has kept another value"
        return FlagReport(name, value, now, "no effect here", f"{why}; set {name} before Paddle is loaded")
    if row is None:
        return FlagReport(name, value, now, "effective", "Paddle has taken it; what it does is not measured")
    finding = prober.probe(row, value)
    return FlagReport(name, value, now, "effective" if finding.effective else "no effect here", finding.reason)


def _is_read_elsewhere(name: str) -> bool:
    return _is_a_plug_ins(name) or (_READ_BY_PYTHON.fullmatch(name) is not None and name not in GPU_ONLY)


def _is_a_plug_ins(name: str) -> bool:
    """Whether a loaded plug-in may read it by itself: ``FLAGS_npu_…`` beside a plug-in for ``npu``."""
    import paddle

    prefixes = tuple(f"FLAGS_{kind}_" for kind in paddle.device.get_all_custom_device_type())
    return name not in store.registered() and name.startswith(prefixes)


def _misread(name: str, text: str) -> FlagReport | None:
    """A value that Paddle takes for another one, without saying so."""
    value = store.value_of(name)
    if isinstance(value, bool):
        good, form = text.lower() in ("0", "1", "true", "false"), "1 or 0"
    elif isinstance(value, int):
        good, form = re.fullmatch("[+-]?[0-9]+", text) is not None, "a whole number"
    elif isinstance(value, float):
        good, form = store.is_number(text), "a number"
    else:
        return None
    if good and not (text.startswith("-") and isinstance(value, int) and value > 0):  # some have no sign
        return None
    return FlagReport(name, text, value, "no effect here", f"Paddle reads {text!r} as {value!r}; write {form}")


def _idle(name: str, text: str) -> FlagReport | None:
    """A flag for devices that are not here."""
    row = flag_table.row(name)
    if row is None or row.acts_in != "eager" or set(row.kinds) & _kinds_here():
        return None
    return FlagReport(name, text, store.value_of(name), "no effect here", row.elsewhere)


def _kinds_here() -> set[Kind]:
    import paddle

    kinds: set[Kind] = {"cpu"}
    if paddle.device.is_compiled_with_cuda() or paddle.device.is_compiled_with_rocm():
        kinds.add("gpu")
    if paddle.device.is_compiled_with_xpu():
        kinds.add("xpu")
    if paddle.device.get_all_custom_device_type():
        kinds.add("custom")
    return kinds


def _log(report: FlagReport, device: Device) -> None:
    level = logging.INFO if report.status == "effective" else logging.WARNING
    more = {"instead": report.replacement} if report.replacement else {}
    told = fields(flag=report.name, value=report.requested, on=device.name, status=report.status, reason=report.reason, **more)
    logger.log(level, "memory.flag", extra=told)
