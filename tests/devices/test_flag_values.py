"""What can be asked of memory flags, before Paddle is there."""

from __future__ import annotations

import re

import pytest

from devices.flag_processes import ROOT
from paddle_ds.config.memory import FlagValue, MemoryConfig
from paddle_ds.devices import flag_table
from paddle_ds.devices.flag_old_names import GPU_ONLY, OLD_NAMES
from paddle_ds.devices.flags import apply_flags, before_paddle, check
from paddle_ds.errors import ConfigError

GOOD: list[tuple[str, FlagValue]] = [
    *((row.name, row.default) for row in flag_table.TABLE),
    ("FLAGS_eager_delete_tensor_gb", -1),
    ("FLAGS_fraction_of_gpu_memory_to_use", 1),
]
BAD: list[tuple[str, FlagValue, str]] = [
    ("allocator_strategy", "legacy", "expected one of auto_growth, naive_best_fit, thread_local"),
    ("allocator_strategy", True, "expected one of"),
    ("auto_growth_chunk_size_in_mb", -1, "expected a whole number of at least 0"),
    ("auto_growth_chunk_size_in_mb", True, "expected a whole number"),
    ("auto_growth_chunk_size_in_mb", 1.5, "expected a whole number"),
    ("auto_growth_chunk_size_in_mb", "8", "expected a whole number"),
    ("fraction_of_gpu_memory_to_use", 1.5, "expected a number of at least 0 and at most 1"),
    ("use_system_allocator", 1, "expected true or false"),
    ("use_system_allocator", "false", "expected true or false"),
    ("huge_pages_weights", "always", "expected true or false"),
]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_a_legal_value_passes(name: str, value: FlagValue) -> None:
    row = flag_table.row(name)
    assert row is not None
    check(row, value)


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_a_wrong_value_is_an_error_before_anything_is_set(name: str, value: FlagValue, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"memory.flags: .*{name} is .*{expected}"):
        before_paddle({name: value}, {})


def test_variables_are_written_as_paddle_reads_them() -> None:
    wanted: dict[str, FlagValue] = {
        "use_system_allocator": True,
        "FLAGS_free_idle_chunk": False,
        "eager_delete_tensor_gb": -1.0,
        "allocator_strategy": "auto_growth",
        "not_in_the_table": 7,
        "trim_arena": True,
        "use_ngraph": True,
        "fluid.memory_optimize": True,
        "auto_growth_chunk_size_in_mb": 8,
    }
    assert before_paddle(wanted, {"FLAGS_auto_growth_chunk_size_in_mb": "4"}) == {
        "FLAGS_use_system_allocator": "1",
        "FLAGS_free_idle_chunk": "0",
        "FLAGS_eager_delete_tensor_gb": "-1.0",
        "FLAGS_allocator_strategy": "auto_growth",
        "FLAGS_not_in_the_table": "7",
    }


def test_rows_are_consistent() -> None:
    names = [row.name for row in flag_table.TABLE] + [old.name for old in OLD_NAMES] + sorted(GPU_ONLY)
    assert len(set(names)) == len(names)
    for row in flag_table.TABLE:
        assert row.contrast != row.default
        assert (row.contrast is not None) == (row.probe in ("peak", "locked")), row.name
        assert flag_table.row(row.name.removeprefix("FLAGS_")) is row


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- flags: begin[^\n]*-->\n\n(.*?)\n<!-- flags: end -->", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == flag_table.markdown(), "python -c 'from paddle_ds.devices.flag_table import markdown; print(markdown())'"


def test_memory_configuration_is_checked() -> None:
    for wrong, expected in [
        ({"flags": {"a": None}}, "memory.flags"),
        ({"flags": {1: True}}, "memory.flags"),
        ({"flags": {"a": float("nan")}}, "finite"),
        ({"device_fraction": 0}, "above 0 and at most 1"),
        ({"device_fraction": 1.01}, "above 0 and at most 1"),
        ({"device_fraction": True}, "above 0 and at most 1"),
        ({"reserve_bytes": -1}, "at least 0"),
    ]:
        with pytest.raises(ConfigError, match=expected):
            MemoryConfig(**wrong)  # type: ignore[arg-type]


def test_what_is_wanted_of_the_system_is_asked_for_by_name() -> None:
    assert MemoryConfig().wanted() == {}
    assert MemoryConfig(flags={"a": 1}, huge_pages=False).wanted() == {"a": 1, "huge_pages_weights": False}


@pytest.mark.parametrize(
    ("fraction", "reserve", "usable"),
    [(None, 0, 80), (None, 30, 50), (0.5, 0, 30), (0.5, 60, 20), (0.1, 0, 0), (1, 100, 0)],
)
def test_usable_memory_is_what_share_and_reserve_leave(fraction: float | None, reserve: int, usable: int) -> None:
    assert (
        MemoryConfig(device_fraction=fraction, reserve_bytes=reserve).usable_bytes(total_bytes=100, available_bytes=80) == usable
    )


def test_names_are_found_as_old_documents_write_them() -> None:
    for name in ("BuildStrategy.memory_optimize", "paddle.static.BuildStrategy.memory_optimize"):
        old = flag_table.old_name(name)
        assert old is not None
        assert old.replacement == "FLAGS_eager_delete_tensor_gb"
    for name in ("fluid.memory_optimize", "paddle.fluid.memory_optimize", "limit_of_tmp_allocation", "paddle.fluid"):
        assert flag_table.old_name(name) is not None
    for name in ("fluidity", "eager_delete_tensor_gb", "paddle.static.Program"):
        assert flag_table.old_name(name) is None


def test_nothing_wanted_is_nothing_done() -> None:
    assert apply_flags({}, None) == []  # type: ignore[arg-type]
