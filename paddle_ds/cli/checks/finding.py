"""One line of the doctor's report, and every code that such a line may have. docs/doctor.md has the meanings and the cures."""

from __future__ import annotations

import dataclasses
from typing import Literal

#: ``error``: will stop a server, or what was asked for
Level = Literal["ok", "warning", "error"]

_FACT: tuple[Level, ...] = ("ok",)
_WARNING: tuple[Level, ...] = ("warning",)
_ERROR: tuple[Level, ...] = ("error",)
_EITHER: tuple[Level, ...] = ("warning", "error")

#: code -> levels that it comes with. Codes are stable: scripts look for them
CODES: dict[str, tuple[Level, ...]] = {
    # any topic
    "check_failed": _ERROR,
    "check_skipped": _WARNING,
    # system, environment
    "program": _FACT,
    "python_untested": _WARNING,
    "pip_missing": _WARNING,
    "variable_wrong": _ERROR,
    "variable_set": _FACT,
    # versions
    "version": _FACT,
    "package_missing": _EITHER,
    "extra_missing": ("ok", "warning"),
    "pin_violated": _EITHER,
    "two_paddles": _ERROR,
    "pin_deadlock": _EITHER,
    "requirement_violated": _EITHER,
    "requirement_missing": _EITHER,
    "device_versions": _FACT,
    "device_versions_unknown": _WARNING,
    # compiler
    "compiler": _FACT,
    "compiler_not_needed": _FACT,
    "no_compiler": _WARNING,
    "compiler_unusable": _WARNING,
    "compiler_setting_wrong": _ERROR,
    # machine
    "processor": _FACT,
    "processor_slow": _WARNING,
    "memory": _FACT,
    "numa": _FACT,
    "numa_several": _WARNING,
    "huge_pages": _FACT,
    "huge_pages_off": _WARNING,
    "limits": _FACT,
    "limit_unseen": _WARNING,
    "files": _FACT,
    "files_few": _WARNING,
    "shm": _FACT,
    "shm_small": _WARNING,
    # server
    "directory": _FACT,
    "directory_unwritable": _ERROR,
    "directory_open": _WARNING,
    "disk_full": _WARNING,
    "socket_path_too_long": _ERROR,
    "port_free": _FACT,
    "port_taken": _EITHER,
    "address_wrong": _ERROR,
    # model
    "model": _FACT,
    "model_damaged": _ERROR,
    "model_not_here": _WARNING,
    "model_fits": _FACT,
    "model_too_large": _ERROR,
    "context_shortened": _WARNING,
    "memory_unknown": _WARNING,
    "config_wrong": _ERROR,
    # devices
    "plugin_found": _FACT,
    "plugin_not_loaded": _WARNING,
    "plugin_root_wrong": _WARNING,
    "paddle_unusable": _ERROR,
    "paddle_crashed": _ERROR,
    "paddle_hangs": _ERROR,
    "devices": _FACT,
    "device": _FACT,
    "device_tool_found": _FACT,
    "devices_visible": _FACT,
    "devices_hidden": _WARNING,
    "visible_devices_wrong": _WARNING,
    "device_not_found": _ERROR,
    "device_problem": _EITHER,
    # operators
    "operators": _FACT,
    "operator_fallback": _EITHER,
    "library": _FACT,
    "vector_isa": _FACT,
    "onednn": _FACT,
    "products": _FACT,
    "isa_capped": _WARNING,
    # flags
    "flags": _FACT,
    "flag_effective": _FACT,
    "flag_ignored": _WARNING,
    "flag_replaced": _WARNING,
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report; ``fix`` is a command or a sentence where something is wrong."""

    code: str
    topic: str
    level: Level
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.level in CODES.get(self.code, ()), f"{self.code} is not a code of level {self.level}"
        assert self.level != "ok" or not self.fix, f"{self.code}: nothing is wrong, so there is nothing to mend"
