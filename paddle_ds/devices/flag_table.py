"""Every memory and run-time flag that matters here, as data. No paddle.

What a row says is checked: ``flag_probes.py`` measures it wherever a flag is asked for, and tests/devices/test_flags.py asks for
every row. ``docs/memory.md`` shows the table; :func:`markdown` makes it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from paddle_ds.config.memory import FlagValue
from paddle_ds.devices.flag_old_names import FLUID, OLD_NAMES, OldName

#: how Paddle drives a device; ``custom``: by a plug-in
Kind = Literal["cpu", "gpu", "xpu", "custom"]
#: ``eager``: operators as the engine runs them. ``static``: programs (``paddle.static``, ``to_static``, exported ones).
#: ``inference``: Paddle Inference's ``Config``. ``system``: the operating system
Where = Literal["eager", "static", "inference", "system"]
Probe = Literal[
    "pool", "locked", "limit", "build", "first", "value", "peak", "fallback", "threads", "onednn", "pages", "trim", "inference"
]

#: probe -> what it does
PROBES: dict[Probe, str] = {
    "pool": "a small tensor is made and dropped: what the device gave for it, what Paddle kept",
    "locked": "a CPU tensor is made with the flag and without it: how many bytes the system counts as locked",
    "limit": "a tensor larger than the limit is asked for",
    "build": "whether this Paddle was built for devices that read it",
    "first": "set before the first tensor and read back; its effect is not measured",
    "value": "set and read back; its effect is not measured",
    "peak": "a chain of eager operators is run with the flag and without it: their peak memory",
    "fallback": "an operator is run for which the device has no kernel",
    "threads": "the threads of Paddle's OpenMP are counted before and after",
    "onednn": "an eager matrix product is run: whether oneDNN reports one",
    "pages": "8 MB are touched: whether they become huge pages",
    "trim": "16 MB are allocated and freed: what the C library gives back",
    "inference": "a small program is exported and run with and without it: its peak memory",
}
_POOLED: tuple[Kind, ...] = ("gpu", "xpu", "custom")
_EXECUTORS: tuple[Kind, ...] = ("cpu", *_POOLED)
_UNPOOLED = "tensors of the CPU come from the C library and go back to it, whatever the allocator's flags say"
_CUDA = "read only where Paddle was built for CUDA or ROCm"
_STATIC = "acts in static programs; eager operators, which the engine runs, drop a tensor with its last reference"
_NAIVE = "read only by allocator_strategy naive_best_fit"


@dataclasses.dataclass(frozen=True)
class Flag:
    """One row.

    Attributes:
        kinds: devices on which it matters; empty: none.
        elsewhere: why it does nothing on the others, or outside of where it acts.
        read_only: Paddle takes it from the environment alone.
        contrast: a value with another effect than ``default``, to measure against.
    """

    name: str
    default: FlagValue
    kinds: tuple[Kind, ...]
    acts_in: Where
    probe: Probe
    meaning: str
    elsewhere: str = ""
    choices: tuple[str, ...] = ()
    at_least: float | None = 0
    at_most: float | None = None
    read_only: bool = False
    contrast: FlagValue | None = None


LEVERS: tuple[Flag, ...] = (
    Flag(
        "huge_pages_weights", True, ("cpu",), "system", "pages",
        "packed INT8 weights lie in 2 MB pages, which the compiled operators ask for; false: the process gets none",
        "weights lie in the device's memory",
    ),
    Flag(
        "trim_arena", True, ("cpu", "gpu", "xpu", "custom"), "system", "trim",
        "what loading has freed goes back to the system (malloc_trim of glibc)",
    ),
    Flag(
        "inference_memory_optim", True, ("cpu",), "inference", "inference",
        "exported programs: Config.enable_memory_optim, with what a .json program needs for it to be accepted",
        "programs for the CPU are tried; the executor of .json programs frees temporaries by itself",
    ),
)  # fmt: skip

FLAGS: tuple[Flag, ...] = (
    Flag(
        "FLAGS_allocator_strategy", "auto_growth", _POOLED, "eager", "pool",
        "auto_growth: memory is taken as it is needed and kept for later. naive_best_fit: one large piece is taken with the "
        "first tensor and never given back. thread_local: not for plug-ins", _UNPOOLED,
        choices=("auto_growth", "naive_best_fit", "thread_local"),
    ),
    Flag(
        "FLAGS_auto_growth_chunk_size_in_mb", 0, _POOLED, "eager", "pool",
        "least MiB that auto_growth takes at a time; 0: as much as the tensor needs. Larger: fewer calls, more unused", _UNPOOLED,
    ),
    Flag(
        "FLAGS_free_idle_chunk", False, _POOLED, "eager", "pool",
        "auto_growth gives every piece back as soon as nothing uses it; each step then allocates anew", _UNPOOLED, read_only=True,
    ),
    Flag(
        "FLAGS_free_when_no_cache_hit", False, _POOLED, "eager", "pool",
        "auto_growth gives unused pieces back before it takes another one: a lower peak, more calls", _UNPOOLED, read_only=True,
    ),
    Flag(
        "FLAGS_fraction_of_gpu_memory_to_use", 0.92, _POOLED, "eager", "pool",
        "share of the free memory that the large piece of naive_best_fit takes", _NAIVE, at_most=1.0,
    ),
    Flag(
        "FLAGS_initial_gpu_memory_in_mb", 0, _POOLED, "eager", "pool",
        "MiB of the first large piece of naive_best_fit; 0: by the fraction. With a plug-in the larger of this and "
        "reallocate_gpu_memory_in_mb counts, so set both", _NAIVE,
    ),
    Flag(
        "FLAGS_reallocate_gpu_memory_in_mb", 0, _POOLED, "eager", "pool",
        "MiB of the further large pieces of naive_best_fit; 0: by the fraction", _NAIVE,
    ),
    Flag(
        "FLAGS_gpu_memory_limit_mb", 0, ("gpu",), "eager", "limit",
        "MiB after which allocations fail; 0: no limit. Plug-ins are not limited by it: use memory.device_fraction", _CUDA,
    ),
    Flag(
        "FLAGS_gpu_allocator_retry_time", 10000, ("gpu", "xpu"), "eager", "first",
        "milliseconds to wait for memory before an allocation fails", "only GPUs and XPUs wait", at_least=None,
    ),
    Flag(
        "FLAGS_use_stream_safe_cuda_allocator", True, _POOLED, "eager", "first",
        "memory is reused only after the streams that use it; false is for one stream", _UNPOOLED,
    ),
    Flag(
        "FLAGS_use_virtual_memory_auto_growth", False, ("gpu",), "eager", "build",
        "auto_growth on CUDA's virtual memory: pieces can be joined, so less is lost between them", _CUDA,
    ),
    Flag(
        "FLAGS_use_cuda_malloc_async_allocator", False, ("gpu",), "eager", "build", "CUDA's own pool instead of Paddle's", _CUDA,
    ),
    Flag(
        "FLAGS_use_cuda_managed_memory", False, ("gpu",), "eager", "build", "memory may be paged out to the host", _CUDA,
    ),
    Flag(
        "FLAGS_use_auto_growth_v2", False, ("gpu",), "eager", "build", "another version of auto_growth", _CUDA,
    ),
    Flag(
        "FLAGS_use_auto_growth_pinned_allocator", False, ("gpu",), "eager", "build",
        "pinned host memory is pooled by auto_growth", _CUDA,
    ),
    Flag(
        "FLAGS_fraction_of_cuda_pinned_memory_to_use", 0.5, ("gpu",), "eager", "build",
        "share of the host's memory that pinned memory may take", _CUDA, at_most=1.0,
    ),
    Flag(
        "FLAGS_use_system_allocator", False, _POOLED, "eager", "pool",
        "for Paddle's own tests: tensors leave Paddle's statistics; with a plug-in it turns on the large piece of naive_best_fit",
        "on the CPU it takes tensors out of Paddle's statistics, and nothing else",
    ),
    Flag(
        "FLAGS_fraction_of_cpu_memory_to_use", 1.0, (), "eager", "pool", "of a pool that Paddle on Linux does not use", _UNPOOLED,
        at_most=1.0,
    ),
    Flag(
        "FLAGS_initial_cpu_memory_in_mb", 500, (), "eager", "pool", "of a pool that Paddle on Linux does not use", _UNPOOLED,
    ),
    Flag(
        "FLAGS_use_pinned_memory", True, (), "eager", "locked",
        "locks the pages of a pool that Paddle on Linux does not use", _UNPOOLED,
        contrast=False,
    ),
    Flag(
        "FLAGS_eager_delete_tensor_gb", 0.0, _EXECUTORS, "static", "peak",
        "GB of dead temporaries after which the executor frees them; below 0: never", _STATIC, at_least=None, contrast=-1.0,
    ),
    Flag(
        "FLAGS_memory_fraction_of_eager_deletion", 1.0, (), "static", "peak",
        "of an executor that is gone: it changes nothing in today's", _STATIC, at_most=1.0, contrast=0.0,
    ),
    Flag(
        "FLAGS_fast_eager_deletion_mode", True, ("gpu",), "static", "peak",
        "the executor frees memory before the kernel that used it has ended", _STATIC, contrast=False,
    ),
    Flag(
        "FLAGS_new_executor_use_inplace", False, (), "static", "peak",
        "of programs in the old format (.pdmodel); pir_apply_inplace_pass is its successor", _STATIC, contrast=True,
    ),
    Flag(
        "FLAGS_pir_apply_inplace_pass", True, _EXECUTORS, "static", "peak",
        "an operator may write its result over its input", _STATIC, contrast=False,
    ),
    Flag(
        "FLAGS_local_exe_sub_scope_limit", 256.0, _EXECUTORS, "static", "peak",
        "MB that the executor keeps for the bodies of loops; below 0: no limit", _STATIC, at_least=None, contrast=1.0,
    ),
    Flag(
        "FLAGS_cache_inference_while_scope", False, _EXECUTORS, "static", "peak",
        "keep the variables of a loop's body from one round to the next", _STATIC, contrast=True,
    ),
    Flag(
        "FLAGS_enable_api_kernel_fallback", True, _POOLED, "eager", "fallback",
        "operators for which the device has no kernel run on the CPU, with a copy there and back; false: they are errors",
        "there is nothing to fall back to",
    ),
    Flag(
        "FLAGS_npu_storage_format", False, ("custom",), "eager", "value",
        "Ascend: convolution and batch normalisation in the chip's own layouts; language models have neither",
        "Ascend's plug-in alone reads it",
    ),
    Flag(
        "FLAGS_paddle_num_threads", 1, (), "eager", "threads", "threads of Paddle builds without oneDNN",
        "OMP_NUM_THREADS decides, which the engine sets from num_threads", at_least=1,
    ),
    Flag(
        "FLAGS_use_mkldnn", False, ("cpu",), "static", "onednn", "operators of static programs run on oneDNN where it has them",
        "acts in static programs; Paddle Inference has oneDNN on without it, and the compiled operators call it themselves",
    ),
    Flag(
        "FLAGS_use_onednn", False, ("cpu",), "static", "onednn", "the newer name of use_mkldnn (not in Paddle 3.0)",
        "acts in static programs; Paddle Inference has oneDNN on without it, and the compiled operators call it themselves",
    ),
)  # fmt: skip

TABLE: tuple[Flag, ...] = LEVERS + FLAGS
_ROWS = {row.name: row for row in TABLE}
_OLD = {old.name: old for old in OLD_NAMES}


def canonical(name: str) -> str:
    """The name as the tables have it.

    >>> canonical("use_pinned_memory"), canonical("fluid.memory_optimize"), canonical("trim_arena")
    ('FLAGS_use_pinned_memory', 'paddle.fluid.memory_optimize', 'trim_arena')
    """
    if name == "fluid" or name.startswith("fluid."):
        return "paddle." + name
    name = name.removeprefix("paddle.static.")
    if name.startswith(("FLAGS_", "paddle.", "BuildStrategy.")) or name in _ROWS:
        return name
    return "FLAGS_" + name


def row(name: str) -> Flag | None:
    """The row of a name, with or without its prefix."""
    return _ROWS.get(canonical(name))


def old_name(name: str) -> OldName | None:
    """What became of a name of older documents; ``None`` for others."""
    name = canonical(name)
    if name in _OLD:
        return _OLD[name]
    return dataclasses.replace(FLUID, name=name) if name.split(".")[:2] == ["paddle", "fluid"] else None


def names() -> list[str]:
    """All names that the table has rows for."""
    return list(_ROWS)


def markdown() -> str:
    """The tables of docs/memory.md."""
    lines = ["| flag | default | devices | acts in | meaning | elsewhere | probe |", "|---|---|---|---|---|---|---|"]
    for flag in TABLE:
        kinds = ", ".join("plug-in" if kind == "custom" else kind for kind in flag.kinds) or "none"
        where = flag.acts_in + (", from the environment alone" if flag.read_only else "")
        cells = [f"`{flag.name}`", f"`{flag.default}`", kinds, where, flag.meaning, flag.elsewhere, flag.probe]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| probe | what it does |", "|---|---|", *(f"| {probe} | {text} |" for probe, text in PROBES.items())]
    lines += ["", "| old name | instead | why |", "|---|---|---|"]
    for old in (*OLD_NAMES, dataclasses.replace(FLUID, name="paddle.fluid, anything else")):
        lines.append(f"| `{old.name}` | {f'`{old.replacement}`' if old.replacement else 'nothing'} | {old.reason} |")
    return "\n".join(lines) + "\n"
