"""Each memory flag is answered by what was seen, not by what is said of it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import emulated_device
from devices.flag_processes import report, scenarios
from paddle_ds.config.memory import FlagValue
from paddle_ds.devices import flag_table
from paddle_ds.devices.flag_measures import huge_page_mode
from paddle_ds.devices.flag_old_names import OLD_NAMES, OldName
from paddle_ds.devices.flags import before_paddle

EFFECTIVE, NOTHING, UNKNOWN, REPLACED = "effective", "no effect here", "unknown to this Paddle", "replaced"


def other_value(row: flag_table.Flag) -> FlagValue:
    """A legal value that is not the default."""
    if row.contrast is not None:
        return row.contrast
    if row.choices:
        return row.choices[1]
    if isinstance(row.default, bool):
        return not row.default
    return 3 if isinstance(row.default, int) else 0.25


OTHER_VALUES = {row.name: other_value(row) for row in flag_table.FLAGS}

#: variables that Paddle passes over without a word, and what is wrong with each
IGNORED = {
    "FLAGS_enable_memory_optim": ("1", REPLACED, "never a flag"),
    "FLAGS_max_body_size": ("1", UNKNOWN, "parameter server"),
    "FLAGS_cudnn_deterministic": ("1", UNKNOWN, "CUDA and ROCm"),
    "FLAGS_eager_delete_tensor_gbs": ("1", UNKNOWN, "did you mean FLAGS_eager_delete_tensor_gb"),
    "FLAGS_fraction_of_cpu_memory_to_use": ("0.5", NOTHING, "C library"),
    "FLAGS_fraction_of_gpu_memory_to_use": ("0.5", NOTHING, "naive_best_fit"),
    "FLAGS_pir_apply_inplace_pass": ("yes", NOTHING, "Paddle reads 'yes' as"),
}
NOT_IGNORED = {
    "FLAGS_eager_delete_tensor_gb": "0.5",
    "FLAGS_selected_npus": "0",
    "FLAGS_pir_apply_inplace_pass": "1",
    "FLAGS_check_nan_inf": "True",
    "PATH": "/bin",
}

CPU_SCENARIOS: list[dict[str, Any]] = [
    {"wanted": {row.name: row.default for row in flag_table.TABLE if row.name != "inference_memory_optim"}},
    {"wanted": OTHER_VALUES},
    {"wanted": {"huge_pages_weights": False, "trim_arena": False, "inference_memory_optim": False}},
    {
        "wanted": {old.name: True for old in OLD_NAMES}
        | {"fluid.layers.data": 1, "paddle.static.BuildStrategy.memory_optimize": True}
    },
    {"wanted": {"eager_delete_tensor_gbs": 0.0, "qwertyuiop": 1, "FLAGS_cudnn_deterministic": True, "FLAGS_selected_npus": "0"}},
    {"wanted": {"eager_delete_tensor_gbs": 0.0, "FLAGS_use_ngraph": True, "use_pinned_memory": False}, "strict": True},
    {"wanted": {"check_nan_inf": True, "check_nan_inf_level": 1}},
    {"wanted": {"check_nan_inf": "yes"}},
    {"ignored": {name: text for name, (text, _, _) in IGNORED.items()} | NOT_IGNORED | {"FLAGS_pir_apply_inplace_pass": "yes"}},
    {"ignored": NOT_IGNORED},
]
DEFAULTS, OTHERS, LEVERS_OFF, OLD, ODD, STRICT, UNLISTED, WRONG_TYPE, IGNORED_HERE, ALL_WELL = range(len(CPU_SCENARIOS))

IDLE: dict[str, FlagValue] = {"free_idle_chunk": True, "auto_growth_chunk_size_in_mb": 8}
NAIVE = {"allocator_strategy": "naive_best_fit"}
DEVICE_SCENARIOS: list[dict[str, Any]] = [
    {
        "wanted": OTHER_VALUES
        | {"FLAGS_allocator_strategy": "auto_growth", "FLAGS_use_system_allocator": False}
        | {"trim_arena": True}
    },
    {"wanted": {**NAIVE, "fraction_of_gpu_memory_to_use": 0.25}},
    {"wanted": {**NAIVE, "initial_gpu_memory_in_mb": 32, "reallocate_gpu_memory_in_mb": 16}},
    {"wanted": {**NAIVE, "initial_gpu_memory_in_mb": 16, "reallocate_gpu_memory_in_mb": 32}},
    {"wanted": {"use_system_allocator": True}},
    {"wanted": {"auto_growth_chunk_size_in_mb": 8, **NAIVE, "use_stream_safe_cuda_allocator": False}, "tensor_first": True},
    {"wanted": {"allocator_strategy": "thread_local"}},
    {"wanted": {"huge_pages_weights": True, "inference_memory_optim": True, "npu_jit_compile": False}, "strict": True},
    {"ignored": {"FLAGS_npu_jit_compile": "0", "FLAGS_mlu_jit_compile": "0", "FLAGS_fraction_of_gpu_memory_to_use": "0.5"}},
]
GROWTH, FRACTION, INITIAL, REALLOCATE, SYSTEM, TOO_LATE, THREAD_LOCAL, LEVERS, VARIABLES = range(len(DEVICE_SCENARIOS))

#: what is found on the emulated device: flag -> scenario, status, what the reason must say
ON_DEVICE: dict[str, tuple[int, str, str]] = {
    "huge_pages_weights": (LEVERS, NOTHING, "device's memory"),
    "trim_arena": (GROWTH, EFFECTIVE, "gave [0-9]{7,} bytes"),
    "inference_memory_optim": (LEVERS, NOTHING, "programs for the CPU"),
    "FLAGS_allocator_strategy": (FRACTION, EFFECTIVE, "took 256 MiB"),
    "FLAGS_auto_growth_chunk_size_in_mb": (GROWTH, EFFECTIVE, "took 3 MiB, 3 MiB of which were kept"),
    "FLAGS_free_idle_chunk": (GROWTH, NOTHING, "environment alone"),
    "FLAGS_free_when_no_cache_hit": (GROWTH, NOTHING, "environment alone"),
    "FLAGS_fraction_of_gpu_memory_to_use": (FRACTION, EFFECTIVE, "took 256 MiB"),
    "FLAGS_initial_gpu_memory_in_mb": (INITIAL, EFFECTIVE, "took 32 MiB"),
    "FLAGS_reallocate_gpu_memory_in_mb": (REALLOCATE, EFFECTIVE, "took 32 MiB"),
    "FLAGS_gpu_memory_limit_mb": (GROWTH, NOTHING, "with a limit of 1 MiB a tensor of 2 MiB was made"),
    "FLAGS_gpu_allocator_retry_time": (GROWTH, NOTHING, "GPUs and XPUs"),
    "FLAGS_use_stream_safe_cuda_allocator": (GROWTH, EFFECTIVE, "before the first tensor"),
    "FLAGS_use_virtual_memory_auto_growth": (GROWTH, NOTHING, "CUDA"),
    "FLAGS_use_cuda_malloc_async_allocator": (GROWTH, NOTHING, "CUDA"),
    "FLAGS_use_cuda_managed_memory": (GROWTH, NOTHING, "CUDA"),
    "FLAGS_use_auto_growth_v2": (GROWTH, NOTHING, "CUDA"),
    "FLAGS_use_auto_growth_pinned_allocator": (GROWTH, NOTHING, "CUDA"),
    "FLAGS_fraction_of_cuda_pinned_memory_to_use": (GROWTH, NOTHING, "CUDA"),
    "FLAGS_use_system_allocator": (SYSTEM, EFFECTIVE, "not in Paddle's statistics; the first one took [0-9.]{3,} MiB"),
    "FLAGS_fraction_of_cpu_memory_to_use": (GROWTH, NOTHING, "C library"),
    "FLAGS_initial_cpu_memory_in_mb": (GROWTH, NOTHING, "C library"),
    "FLAGS_use_pinned_memory": (GROWTH, NOTHING, "0 bytes of a tensor were locked with it"),
    "FLAGS_eager_delete_tensor_gb": (GROWTH, NOTHING, "took ([0-9]+) bytes"),
    "FLAGS_memory_fraction_of_eager_deletion": (GROWTH, NOTHING, "took ([0-9]+) bytes"),
    "FLAGS_fast_eager_deletion_mode": (GROWTH, NOTHING, "took ([0-9]+) bytes"),
    "FLAGS_new_executor_use_inplace": (GROWTH, NOTHING, "took ([0-9]+) bytes"),
    "FLAGS_pir_apply_inplace_pass": (GROWTH, NOTHING, "took ([0-9]+) bytes"),
    "FLAGS_local_exe_sub_scope_limit": (GROWTH, NOTHING, "took ([0-9]+) bytes"),
    "FLAGS_cache_inference_while_scope": (GROWTH, NOTHING, "took ([0-9]+) bytes"),
    "FLAGS_enable_api_kernel_fallback": (GROWTH, EFFECTIVE, "for which there is no kernel, is an error"),
    "FLAGS_npu_storage_format": (GROWTH, EFFECTIVE, "not measured"),
    "FLAGS_paddle_num_threads": (GROWTH, NOTHING, "whatever the flag says"),
    "FLAGS_use_mkldnn": (GROWTH, NOTHING, "oneDNN ran no eager product"),
    "FLAGS_use_onednn": (GROWTH, NOTHING, "oneDNN ran no eager product"),
}


@pytest.fixture(scope="module")
def on_cpu() -> list[dict[str, Any]]:
    return scenarios("cpu", CPU_SCENARIOS)


@pytest.fixture(scope="module")
def on_device() -> list[list[dict[str, Any]]]:
    """What the device's scenarios gave, and those that need variables before Paddle is loaded."""
    npu = emulated_device.environment("npu")
    idle = before_paddle(IDLE | {"auto_growth_chunk_size_in_mb": 4}, {})
    spare = before_paddle({"free_when_no_cache_hit": True}, {})
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(scenarios, "npu:0", DEVICE_SCENARIOS, **npu),
            pool.submit(
                scenarios, "npu:0", [{"wanted": {"free_idle_chunk": True, "auto_growth_chunk_size_in_mb": 8}}], **npu, **idle
            ),
            pool.submit(scenarios, "npu:0", [{"wanted": {"free_when_no_cache_hit": True}}], **npu, **spare),
        ]
        return [job.result() for job in jobs]


@pytest.mark.floor
@pytest.mark.parametrize("row", flag_table.FLAGS, ids=lambda row: row.name)
@pytest.mark.parametrize("scenario", [DEFAULTS, OTHERS], ids=["default", "other"])
def test_no_flag_of_paddle_changes_the_engine_on_the_cpu(
    on_cpu: list[dict[str, Any]], row: flag_table.Flag, scenario: int
) -> None:
    found = report(on_cpu[scenario], row.name)
    if row.name == "FLAGS_use_onednn" and found["status"] == UNKNOWN:
        assert "other versions do" in found["reason"]  # Paddle 3.0
        return
    if row.read_only and scenario == OTHERS:
        assert (found["status"], found["value"]) == (NOTHING, row.default)
        assert "before Paddle is loaded" in found["reason"]
        return
    assert found["status"] == NOTHING
    assert found["value"] == found["requested"]
    assert found["reason"].startswith(row.elsewhere)


def test_pages_and_freed_memory_are_the_systems_to_give(on_cpu: list[dict[str, Any]]) -> None:
    pages = report(on_cpu[DEFAULTS], "huge_pages_weights")
    assert pages["status"] == (EFFECTIVE if huge_page_mode() in ("always", "madvise") else NOTHING)
    assert f"mode is {huge_page_mode() or 'absent'}" in pages["reason"]
    assert report(on_cpu[DEFAULTS], "trim_arena")["status"] == EFFECTIVE


def test_levers_can_be_left_alone(on_cpu: list[dict[str, Any]]) -> None:
    pages = report(on_cpu[LEVERS_OFF], "huge_pages_weights")
    assert pages["reason"].endswith(" of 8 MB 0 bytes became huge pages")
    assert {found["status"] for found in on_cpu[LEVERS_OFF]["reports"]} == {EFFECTIVE}


def test_probes_leave_device_and_threads_as_they_were(on_cpu: list[dict[str, Any]]) -> None:
    for scenario in (DEFAULTS, OTHERS):
        assert on_cpu[scenario]["before"] == on_cpu[scenario]["after"]


def test_every_row_has_an_expectation_on_a_device() -> None:
    assert list(ON_DEVICE) == flag_table.names()


@pytest.mark.parametrize("name", ON_DEVICE)
def test_flag_on_a_device_of_a_plug_in(on_device: list[list[dict[str, Any]]], name: str) -> None:
    scenario, status, reason = ON_DEVICE[name]
    found = report(on_device[0][scenario], name)
    assert found["status"] == status, found
    assert re.search(reason, found["reason"]), found


def test_a_flag_that_acts_here_matters_here() -> None:
    for name, (_, status, _) in ON_DEVICE.items():
        row = flag_table.row(name)
        assert row is not None
        if status == EFFECTIVE:
            assert "custom" in row.kinds, name


def test_naive_best_fit_takes_the_larger_of_two_sizes(on_device: list[list[dict[str, Any]]]) -> None:
    assert report(on_device[0][INITIAL], "reallocate_gpu_memory_in_mb")["status"] == NOTHING
    assert report(on_device[0][REALLOCATE], "initial_gpu_memory_in_mb")["status"] == NOTHING


def test_after_the_first_tensor_the_allocator_is_decided(on_device: list[list[dict[str, Any]]]) -> None:
    late = on_device[0][TOO_LATE]
    assert {found["status"] for found in late["reports"]} == {NOTHING}
    assert "when Paddle is loaded" in report(late, "use_stream_safe_cuda_allocator")["reason"]


def test_a_strategy_without_memory_for_plug_ins_is_refused(on_device: list[list[dict[str, Any]]]) -> None:
    refused = on_device[0][THREAD_LOCAL]
    assert refused["error"] == "config_error"
    assert "expected auto_growth or naive_best_fit" in refused["message"]


def test_a_plug_ins_own_flags_are_left_to_it(on_device: list[list[dict[str, Any]]]) -> None:
    assert "plug-in may read it" in report(on_device[0][LEVERS], "npu_jit_compile")["reason"]
    assert [found["name"] for found in on_device[0][VARIABLES]["reports"]] == ["FLAGS_mlu_jit_compile"]


def test_variables_set_before_paddle_take_effect(on_device: list[list[dict[str, Any]]]) -> None:
    idle, spare = on_device[1][0], on_device[2][0]
    assert report(idle, "free_idle_chunk")["status"] == EFFECTIVE
    assert "took 4 MiB, 0 MiB of which were kept" in report(idle, "free_idle_chunk")["reason"]
    assert report(spare, "free_when_no_cache_hit")["status"] == EFFECTIVE
    assert "went back" in report(spare, "free_when_no_cache_hit")["reason"]


def test_the_users_variable_wins(on_device: list[list[dict[str, Any]]]) -> None:
    found = report(on_device[1][0], "auto_growth_chunk_size_in_mb")
    assert (found["requested"], found["value"], found["status"]) == (8, 4, NOTHING)
    assert found["reason"] == "the environment has FLAGS_auto_growth_chunk_size_in_mb=4, which wins"


@pytest.mark.parametrize("old", OLD_NAMES, ids=lambda old: old.name)
def test_an_old_name_is_answered(on_cpu: list[dict[str, Any]], old: OldName) -> None:
    found = report(on_cpu[OLD], old.name)
    assert found["status"] == (REPLACED if old.replacement else UNKNOWN)
    assert (found["replacement"], found["value"]) == (old.replacement, None)
    assert old.reason in found["reason"]
    known = ("device", "num_threads", "paddle.static", "", *flag_table.names())
    assert old.replacement in known


def test_anything_else_of_fluid_is_answered_too(on_cpu: list[dict[str, Any]]) -> None:
    assert report(on_cpu[OLD], "paddle.fluid.layers.data")["replacement"] == "paddle.static"


def test_unknown_names_are_told_with_close_ones(on_cpu: list[dict[str, Any]]) -> None:
    odd = on_cpu[ODD]
    assert {found["status"] for found in odd["reports"]} == {UNKNOWN}
    assert "did you mean FLAGS_eager_delete_tensor_gb" in report(odd, "eager_delete_tensor_gbs")["reason"]
    assert "did you mean" not in report(odd, "qwertyuiop")["reason"]
    assert "CUDA and ROCm" in report(odd, "cudnn_deterministic")["reason"]
    assert "launcher" in report(odd, "selected_npus")["reason"]


def test_strict_lists_all_unknown_names(on_cpu: list[dict[str, Any]]) -> None:
    refused = on_cpu[STRICT]
    assert refused["error"] == "config_error"
    assert "FLAGS_eager_delete_tensor_gbs" in refused["message"]
    assert "FLAGS_use_ngraph: nGraph is gone (use FLAGS_use_onednn)" in refused["message"]
    assert "pinned" not in refused["message"]


def test_a_flag_outside_of_the_table_is_set_and_said_to_be_unmeasured(on_cpu: list[dict[str, Any]]) -> None:
    for found in on_cpu[UNLISTED]["reports"]:
        assert (found["status"], found["value"]) == (EFFECTIVE, found["requested"])
        assert "not measured" in found["reason"]
    assert "Paddle has False there" in on_cpu[WRONG_TYPE]["message"]


def test_what_became_of_a_flag_is_logged(on_cpu: list[dict[str, Any]]) -> None:
    line = next(line for line in on_cpu[OLD]["stderr"].splitlines() if "flag=FLAGS_use_ngraph" in line)
    assert "memory.flag" in line
    assert "status=replaced" in line
    assert "instead=FLAGS_use_onednn" in line


@pytest.mark.parametrize("name", IGNORED)
def test_a_variable_that_paddle_passes_over_is_found(on_cpu: list[dict[str, Any]], name: str) -> None:
    _, status, reason = IGNORED[name]
    found = report(on_cpu[IGNORED_HERE], name)
    assert found["status"] == status
    assert reason in found["reason"]


def test_other_variables_are_not_complained_of(on_cpu: list[dict[str, Any]]) -> None:
    assert {found["name"] for found in on_cpu[IGNORED_HERE]["reports"]} == set(IGNORED)
    assert on_cpu[ALL_WELL]["reports"] == []
