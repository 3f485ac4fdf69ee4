"""The processor, its memory and the nodes it is spread over, huge pages, and the limits that the system sets."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding

#: connections that one HTTP worker may hold, and what it opens beside them
_WANTED_FILES = 4096 + 512
#: what the HTTP server raises its own limit to, where it may
_RAISED_FILES = 65536
#: heartbeat files of the HTTP workers lie there; some containers have 64 MB, which is more than enough
_WANTED_SHM_BYTES = 1 << 20
_GB = 1e9


def processor(context: Context) -> Iterator[Finding]:
    """Cores, instruction sets, memory: as the engine sees them."""
    from paddle_ds.devices import environment
    from paddle_ds.devices.cpu import CpuDevice

    device = CpuDevice()
    stats, features = device.memory_stats(), device.capabilities.features
    vendor = environment.cpu_vendor() or platform.machine()
    said = ", ".join(features) or "none of those that matter"
    yield Finding("processor", "processor", "ok", f"{vendor}, {environment.usable_cores()} usable cores, {said}")
    if platform.machine() == "x86_64" and "avx2" not in features:
        text = "no AVX2: the operators' plainest loops will run, many times slower"
        yield Finding("processor_slow", "processor", "warning", text, "in a virtual machine, pass the host's processor through")
    text = f"{stats.available_bytes / _GB:.1f} of {stats.total_bytes / _GB:.1f} GB available"
    yield Finding("memory", "memory", "ok", text)


def nodes(context: Context) -> Iterator[Finding]:
    """NUMA nodes whose cores this process may use: memory of another node is slower."""
    here = os.sched_getaffinity(0)
    usable: dict[str, set[int]] = {}
    for directory in sorted((context.root / "sys/devices/system/node").glob("node[0-9]*")):
        cores = _numbers(_read(directory / "cpulist"))
        if cores & here:
            usable[directory.name.removeprefix("node")] = cores
    if not usable:
        return
    if len(usable) == 1:
        yield Finding("numa", "numa", "ok", f"all usable cores are on one node ({next(iter(usable))})")
        return
    told = ", ".join(f"node {name} with {len(cores & here)}" for name, cores in usable.items())
    name, cores = max(usable.items(), key=lambda node: len(node[1] & here))
    fix = (
        f"bind each server to one node: numactl --cpunodebind={name} --membind={name} paddle-ds serve ..., or "
        f"without numactl: taskset --cpu-list {_ranges(cores & here)} paddle-ds serve ..."
    )
    text = (
        f"the usable cores are on {len(usable)} nodes ({told} cores): weights on another node are read over the link between them"
    )
    yield Finding("numa_several", "numa", "warning", text, fix)


def huge_pages(context: Context) -> Iterator[Finding]:
    """The kernel's setting, and what it means for packed weights."""
    setting = context.root / "sys/kernel/mm/transparent_hugepage/enabled"
    text = _read(setting)
    mode = text.partition("[")[2].partition("]")[0]
    if mode in ("always", "madvise"):
        how = "the operators ask for them" if mode == "madvise" else "whoever has large pieces of memory gets them"
        yield Finding("huge_pages", "huge-pages", "ok", f"{mode}: packed INT8 weights lie in 2 MB pages ({how})")
        return
    because = f"{setting} is set to {mode}" if mode else f"the kernel has no {setting}"
    fix = f"echo madvise > {setting} (as root)" if mode else "use a kernel that is built with transparent huge pages"
    text = f"{because}: packed INT8 weights lie in 4 kB pages, which costs speed when they are streamed"
    yield Finding("huge_pages_off", "huge-pages", "warning", text, fix)


def control_groups(context: Context) -> Iterator[Finding]:
    """Limits of the control group (container, service). The memory plan looks at ``/sys/fs/cgroup/memory.max`` alone."""
    base = context.root / "sys/fs/cgroup"
    planned = _limit(base / "memory.max")
    cpu = _read(base / "cpu.max").split()
    quota = f"{int(cpu[0]) / int(cpu[1]):g} cores" if len(cpu) == 2 and cpu[0] != "max" else "no quota of cores"
    memory = f"{planned / _GB:.1f} GB of memory" if planned is not None else "no limit of memory"
    yield Finding("limits", "limits", "ok", f"control group: {memory}, {quota}")
    unseen = {path: limit for path in _other_limits(context.root) if (limit := _limit(path)) is not None}
    smaller = {path: limit for path, limit in unseen.items() if limit < (_physical(context.root) or 0)}
    if smaller and (planned is None or min(smaller.values()) < planned):
        path, limit = min(smaller.items(), key=lambda item: item[1])
        text = f"{path} limits memory to {limit / _GB:.1f} GB, which the memory plan does not see: the process may be killed"
        yield Finding("limit_unseen", "limits", "warning", text, "give the cache a size: cache.max_bytes, or --kv-tokens")


def files(context: Context) -> Iterator[Finding]:
    """Open files: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _RAISED_FILES if hard == resource.RLIM_INFINITY else min(hard, _RAISED_FILES)
    if most >= _WANTED_FILES:
        raised = f", which the HTTP server raises to {most}" if soft < most else ""
        yield Finding("files", "limits", "ok", f"{soft} open files{raised}")
        return
    text = f"at most {hard} open files: an HTTP worker takes up to 4096 connections, and each is one"
    fix = f"raise the hard limit to {_RAISED_FILES}: ulimit -Hn, LimitNOFILE of systemd, --ulimit nofile of a container"
    yield Finding("files_few", "limits", "warning", text, fix)


def shared_memory(context: Context) -> Iterator[Finding]:
    """``/dev/shm``, where HTTP workers show that they live."""
    path = context.root / "dev/shm"
    if not path.is_dir():
        text = f"there is no {path}: heartbeats of HTTP workers go to the disk, which may be slow enough to get them killed"
        yield Finding("shm_small", "limits", "warning", text, f"mount it: mount -t tmpfs tmpfs {path}")
        return
    stats = os.statvfs(path)
    total, free = stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize
    text = f"{path}: {free / _GB:.1f} of {total / _GB:.1f} GB free"
    if free < _WANTED_SHM_BYTES:
        fix = "remove what lies there, or make it larger: --shm-size of a container"
        yield Finding("shm_small", "limits", "warning", f"{text}, too little for the HTTP workers", fix)
    else:
        yield Finding("shm", "limits", "ok", text)


def _other_limits(root: Path) -> Iterator[Path]:
    """Files with limits on this process's memory other than the one that is planned with: nested groups, and version 1."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, group = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            top, name = base, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = base / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in group.split("/") if part]
        # a container sees its own group at the top, under the path that the host has for it
        yield from (top.joinpath(*parts[:depth]) / name for depth in range(0 if number != "0" else 1, len(parts) + 1))


def _limit(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _physical(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: Path) -> str:
    """Empty where there is no such file, or none that may be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _numbers(text: str) -> set[int]:
    """The numbers in a list as the kernel writes it.

    >>> sorted(_numbers("0-2,8"))
    [0, 1, 2, 8]
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _ranges(numbers: set[int]) -> str:
    """The other way round.

    >>> _ranges({0, 1, 2, 8})
    '0-2,8'
    """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
