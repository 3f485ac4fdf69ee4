"""What the probes of memory flags measure: small experiments that leave nothing behind. Each takes milliseconds, but for
:func:`inference_peaks`, which takes about two seconds.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddle_ds.devices.base import Device
from paddle_ds.devices.cpu import CpuDevice

#: of the tensor that :func:`pool` makes; half of the smallest chunk that a flag can ask for
SAMPLE_BYTES = 512 << 10
_PAGES_BYTES = 8 << 20
_TRIM_BLOCKS, _TRIM_BLOCK_BYTES = 256, 64 << 10
_SET_THP_DISABLE, _GET_THP_DISABLE = 41, 42  # prctl(2)


@dataclasses.dataclass(frozen=True)
class Pool:
    """What became of one tensor of :data:`SAMPLE_BYTES`.

    Attributes:
        grown_bytes: what Paddle took from the device for it; 0 where it had room already.
        kept_bytes: what of that it still held when the tensor was gone.
        counted: whether the tensor was in Paddle's statistics.
        spared: whether unused memory went back before a larger tensor was made; ``None`` where that could not be tried.
        free_bytes: of the device before, as far as it tells.
    """

    grown_bytes: int
    kept_bytes: int
    counted: bool
    spared: bool | None
    free_bytes: int | None


class Statistics:
    """Paddle's own counters of the memory of one device."""

    def __init__(self, device: Device) -> None:
        from paddle.base import core

        self._prefix = "host" if device.type == "cpu" else "device"
        self._index = device.index
        self._core = core

    def _call(self, what: str, name: str) -> int:
        return int(getattr(self._core, f"{self._prefix}_memory_stat_{what}")(name, self._index) or 0)

    @property
    def reserved_bytes(self) -> int:
        return self._call("current_value", "Reserved")

    @property
    def allocated_bytes(self) -> int:
        return self._call("current_value", "Allocated")

    def peak_bytes(self, work: Callable[[], Any]) -> int:
        """Most bytes of tensors during ``work``, beyond those before."""
        before = self.allocated_bytes
        self._call("reset_peak_value", "Allocated")
        result = work()
        peak = self._call("peak_value", "Allocated")
        del result
        return peak - before


@contextmanager
def current(device: Device) -> Iterator[None]:
    """Make ``device`` Paddle's for a while."""
    import paddle

    before = paddle.device.get_device()
    device.activate()
    try:
        yield
    finally:
        paddle.set_device(before)


def pool(device: Device, free_bytes: int | None = None) -> Pool:
    """See what a small tensor costs on ``device``, which reports ``free_bytes``."""
    import paddle

    statistics = Statistics(device)
    with current(device):
        device.empty_cache()
        reserved, allocated = statistics.reserved_bytes, statistics.allocated_bytes
        tensor = paddle.empty([SAMPLE_BYTES], dtype="uint8")
        grown = statistics.reserved_bytes - reserved
        counted = statistics.allocated_bytes > allocated
        del tensor
        kept = statistics.reserved_bytes - reserved
        spared = None
        if 0 < grown <= 64 << 20 and kept == grown:
            larger = paddle.empty([2 * grown], dtype="uint8")
            spared = statistics.reserved_bytes - reserved < 3 * grown
            del larger
        device.empty_cache()
    return Pool(grown, kept, counted, spared, free_bytes)


def locked_bytes() -> int:
    """Bytes that the system counts as locked while a CPU tensor lives."""
    import paddle

    host = CpuDevice()
    with current(host):
        before = _status_kb("VmLck")
        tensor = paddle.ones([SAMPLE_BYTES // 4], dtype="float32")
        locked = _status_kb("VmLck") - before
        del tensor
    return locked << 10


def accepts(device: Device, nbytes: int) -> bool:
    """Whether a tensor of ``nbytes`` can be made on ``device``; it is dropped at once."""
    import paddle

    with current(device):
        try:
            tensor = paddle.empty([nbytes], dtype="uint8")
        except Exception:  # whatever Paddle calls it: there is no tensor
            return False
        del tensor
        device.empty_cache()
    return True


def eager_peak(device: Device) -> int:
    """Peak bytes of a chain of products, each of which is needed by the next one alone."""
    import paddle

    def chain() -> Any:
        result = factor
        for _ in range(6):
            result = paddle.matmul(result, factor)
        return result

    with current(device), paddle.no_grad():
        factor = paddle.full([128, 128], 1 / 128)
        chain()
        return Statistics(device).peak_bytes(chain)


def omp_threads() -> int | None:
    """Threads that Paddle's OpenMP would start now; ``None`` where it is not found."""
    import paddle

    path = Path(paddle.__file__).parent / "libs" / "libiomp5.so"
    if not path.exists():
        return None
    with current(CpuDevice()):
        paddle.matmul(paddle.ones([2, 2]), paddle.ones([2, 2]))
    return int(ctypes.CDLL(str(path)).omp_get_max_threads())


def onednn_runs_eagerly() -> bool | None:
    """Whether oneDNN reports a primitive while an eager product of matrices runs; ``None`` where it cannot be asked."""
    import paddle

    path = Path(paddle.__file__).parent / "libs" / "libdnnl.so.3"
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    with current(CpuDevice()):
        factor = paddle.ones([32, 32])
        library.dnnl_set_verbose(1)
        try:
            printed = _printed(lambda: paddle.matmul(factor, factor))
        finally:
            library.dnnl_set_verbose(0)
    return None if printed is None else b"onednn_verbose" in printed


def set_huge_pages(allowed: bool) -> None:
    """Allow or forbid this process huge pages, those that are asked for too."""
    ctypes.CDLL(None).prctl(_SET_THP_DISABLE, int(not allowed), 0, 0, 0)


def huge_page_bytes() -> int | None:
    """How much of 8 MB became huge pages; ``None`` where the system does not tell."""
    before = _huge_kb()
    with mmap.mmap(-1, _PAGES_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, _PAGES_BYTES, mmap.PAGESIZE):
            memory[start] = 1
        after = _huge_kb()
    return None if before is None or after is None else (after - before) << 10


def huge_page_mode() -> str:
    """``always``, ``madvise`` or ``never``; empty where the kernel has no such pages."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return ""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else ""


def trimmed_bytes() -> int | None:
    """Bytes that malloc_trim gives back of 16 MB that were freed below a block that is still held; ``None``: no such function."""
    libc = ctypes.CDLL(None)
    trim = getattr(libc, "malloc_trim", None)
    if trim is None:
        return None
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    trim(0)
    blocks = [libc.malloc(_TRIM_BLOCK_BYTES) for _ in range(_TRIM_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _TRIM_BLOCK_BYTES)
    for block in blocks[:-1]:
        libc.free(block)
    before = _status_kb("VmRSS")
    trim(0)
    given = (before - _status_kb("VmRSS")) << 10
    libc.free(blocks[-1])
    return given


def inference_peaks(optimise: Callable[[Any, Path], None]) -> tuple[int, int]:
    """Peak bytes of a small exported program as it is, and with ``optimise`` applied to its ``Config``.

    Raises:
        Exception: what Paddle raises where it refuses.
    """
    import numpy as np
    import paddle
    from paddle import inference

    class _Chain(paddle.nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = paddle.nn.LayerList([paddle.nn.Linear(64, 64) for _ in range(6)])

        def forward(self, x):  # type: ignore[no-untyped-def]
            for layer in self.layers:
                x = layer(x)
            return x

    def peak(apply: Callable[[Any, Path], None]) -> int:
        config = inference.Config(str(program), str(program.with_suffix(".pdiparams")))
        config.disable_glog_info()
        apply(config, program)
        predictor = inference.create_predictor(config)
        handle = predictor.get_input_handle(predictor.get_input_names()[0])
        handle.copy_from_cpu(np.ones((256, 64), dtype=np.float32))
        return Statistics(CpuDevice()).peak_bytes(predictor.run)

    with tempfile.TemporaryDirectory() as scratch, current(CpuDevice()):
        network = _Chain()
        network.eval()
        paddle.jit.save(network, f"{scratch}/chain", input_spec=[paddle.static.InputSpec([None, 64], "float32", "x")])
        program = next(path for path in Path(scratch).iterdir() if path.suffix in (".json", ".pdmodel"))
        return peak(lambda config, program: None), peak(optimise)


def _status_kb(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) if found else 0


def _huge_kb() -> int | None:
    try:
        found = re.search(r"AnonHugePages:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(found[1]) if found else None


def _printed(work: Callable[[], Any]) -> bytes | None:
    """What the C library writes to standard output during ``work``; ``None`` where there is no standard output."""
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    try:
        kept = os.dup(1)
    except OSError:
        return None
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            work()
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
        file.seek(0)
        return file.read()
