"""What all devices have in common that Paddle drives by a place of their own: GPUs, XPUs and those of plug-ins."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from paddle_ds.devices.base import Capabilities, Capability, DeviceOperator, Event, MemoryStats, Problem, Stream
from paddle_ds.devices.failures import summary, translating
from paddle_ds.devices.kernel_table import KernelTable
from paddle_ds.devices.monitor import read_monitor
from paddle_ds.devices.profile import DeviceProfile
from paddle_ds.errors import DeviceTimeout, UnsupportedError

#: types that a matrix product may have
_MATMUL_TYPES = ("float32", "float16", "bfloat16", "int8")
#: capability -> Paddle kernel that it needs, and the type of its first input
_KERNELS: dict[Capability, tuple[str, str]] = {
    "int8_gemm": ("matmul", "int8"),
    "llm_int8": ("llm_int8_linear", "float16"),
    "weight_only_int8": ("weight_only_linear", "float16"),
}
#: of the largest result: activations of 8 bits and sums in float16 stay well below
_HALF_TOLERANCE = 0.03
#: above every activation, so that none is treated as an outlier
_NO_OUTLIERS = 1e30
_FIRST_PAUSE_S = 20e-6
#: events that nobody may let go of: destroying one waits until it is reached
_NEVER_REACHED: list[Event] = []
_LONGEST_PAUSE_S = 2e-3


class Accelerator:
    """Implements :class:`paddle_ds.devices.base.Device`; subclasses say how a device of their mechanism tells its memory.

    Args:
        profile: what is known of the chip from its documents; ``None`` for one that nobody has written down.
    """

    def __init__(self, device_type: str, index: int, profile: DeviceProfile | None) -> None:
        self.type = device_type
        self.index = index
        self.name = f"{device_type}:{index}"
        self.profile = profile

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        table = KernelTable.read()
        ops: set[Capability] = set()
        missing: dict[str, str] = {"paged_attention": "none is known here; plain operators gather the blocks"}
        for capability, (kernel, dtype) in _KERNELS.items():
            reason = f"no kernel {kernel} for {dtype} is registered" if not table.has(kernel, self.type, dtype) else ""
            if not reason:
                reason = self._wrong_int8_product() if capability == "int8_gemm" else self._wrong_linear(capability)
            if reason:
                missing[capability] = reason
            else:
                ops.add(capability)
        for name, reason in (("streams", self._without_streams()), ("memory_stats", self._without_memory_stats())):
            if reason:
                missing[name] = reason
            else:
                ops.add(name)  # type: ignore[arg-type]
        self._add_more(ops, missing)
        dtypes = frozenset(dtype for dtype in _MATMUL_TYPES if table.has("matmul", self.type, dtype))
        features = (self.profile.vendor,) if self.profile else ()
        return Capabilities(frozenset(ops), dtypes, features, missing)

    def activate(self) -> None:
        import paddle

        paddle.set_device(self.name)

    def memory_stats(self) -> MemoryStats:
        """
        Raises:
            UnsupportedError: nothing here tells the memory of this device.
        """
        stats = self._memory()
        if stats is None:
            raise UnsupportedError(f"device {self.name} does not tell its memory")
        return stats

    def synchronize(self, timeout_s: float | None = None) -> None:
        import paddle

        with translating(self.name):
            if timeout_s is not None and "streams" in self.capabilities.ops:
                self._poll(timeout_s)
            paddle.device.synchronize(self.name)

    def empty_cache(self) -> None:
        import paddle

        empty = getattr(paddle.base.core, "device_empty_cache", None)  # the one that acts on devices of plug-ins
        if empty is not None:
            with self._current():
                empty()

    def make_stream(self) -> Stream:
        import paddle

        self._need("streams")
        with self._current():
            stream: Stream = paddle.device.Stream()
        return stream

    def make_event(self) -> Event:
        import paddle

        self._need("streams")
        with self._current():
            event: Event = paddle.device.Event()
        return event

    def quantized_weight(self, values: npt.NDArray[np.int8], algorithm: str) -> Any:
        import paddle
        from paddle.nn.quant import weight_quantize

        if algorithm == "llm.int8":  # plain [N, K], measured on every architecture but the oldest
            return paddle.to_tensor(np.ascontiguousarray(values))
        if algorithm != "weight_only_int8":
            raise UnsupportedError(f"device {self.name} has no INT8 layout {algorithm!r}; known: llm.int8, weight_only_int8")
        # Paddle packs while it quantises; the integers come back as they are where each channel's largest magnitude is 127
        floats = paddle.to_tensor(_with_full_range(values).T.astype(np.float16))
        with translating(self.name):
            packed, _ = weight_quantize(floats, algo=algorithm)
        return packed

    def operators(self) -> Mapping[str, Sequence[DeviceOperator]]:
        return {}

    def preflight(self) -> Sequence[Problem]:
        return ()

    def metrics(self) -> Mapping[str, float]:
        figures: dict[str, float] = dict(read_monitor(self.profile, self.index)) if self.profile else {}
        stats = None if "memory_used_bytes" in figures else self._memory()
        if stats is not None:
            figures["memory_total_bytes"] = float(stats.total_bytes)
            figures["memory_used_bytes"] = float(stats.total_bytes - stats.available_bytes)
        return figures

    def _memory(self) -> MemoryStats | None:
        """Total and free bytes, from wherever this mechanism tells them."""
        figures = read_monitor(self.profile, self.index) if self.profile else {}
        if "memory_total_bytes" in figures and "memory_used_bytes" in figures:
            total, used = int(figures["memory_total_bytes"]), int(figures["memory_used_bytes"])
            return MemoryStats(total, total - used)
        return None

    def _add_more(self, ops: set[Capability], missing: dict[str, str]) -> None:
        """Capabilities that only one mechanism has."""
        missing.setdefault("graph_capture", "not tried on this mechanism")
        missing.setdefault("collectives", "a model runs on one device")

    def _poll(self, timeout_s: float) -> None:
        """Ask until the work is done: a call that waits inside the device's run-time could not be given up."""
        event = self.make_event()
        event.record()  # type: ignore[attr-defined]
        end_s = time.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while not event.query():
            if time.monotonic() > end_s:
                _NEVER_REACHED.append(event)
                raise DeviceTimeout(f"device {self.name} has not finished its work within {timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _need(self, capability: Capability) -> None:
        reason = self.capabilities.missing.get(capability)
        if reason is not None:
            raise UnsupportedError(f"device {self.name} lacks {capability}: {reason}")

    def _without_streams(self) -> str:
        import paddle

        try:
            with self._current():
                event = paddle.device.Event()
                event.record()
                event.query()
        except Exception as error:
            return f"an event cannot be recorded: {summary(str(error))}"
        return ""

    def _without_memory_stats(self) -> str:
        return "" if self._memory() is not None else "neither Paddle nor the chip's monitoring command tells it"

    def _wrong_int8_product(self) -> str:
        """What is wrong with the device's INT8 product of small matrices; empty where it is exact."""
        import paddle

        generator = np.random.default_rng(0)
        left = generator.integers(-127, 128, (3, 32), dtype=np.int8)
        right = generator.integers(-127, 128, (16, 32), dtype=np.int8)
        expected = left.astype(np.int32) @ right.astype(np.int32).T
        try:
            with self._current():
                product = paddle.matmul(paddle.to_tensor(left), paddle.to_tensor(right), transpose_y=True)
                if product.dtype != paddle.int32:
                    return f"its INT8 product is {product.dtype}, not int32"
                return "" if bool((product.numpy() == expected).all()) else "its INT8 product is not exact"
        except Exception as error:
            return f"its INT8 product fails: {summary(str(error))}"

    def _wrong_linear(self, capability: Capability) -> str:
        """What is wrong with Paddle's INT8 layer for float16 activations on this device; empty where a small one is right."""
        import paddle
        from paddle.nn.quant import llm_int8_linear, weight_only_linear

        generator = np.random.default_rng(0)
        weight = generator.integers(-127, 128, (32, 64), dtype=np.int8)
        weight[:, 0] = 127
        x = generator.standard_normal((3, 64)).astype(np.float16) / np.float16(64)
        expected = x.astype(np.float32) @ weight.astype(np.float32).T
        try:
            with self._current():
                half = paddle.to_tensor(x)
                if capability == "llm_int8":
                    packed = self.quantized_weight(weight, "llm.int8")
                    y = llm_int8_linear(half, packed, None, paddle.ones([32], dtype="float32"), _NO_OUTLIERS)
                else:
                    packed = self.quantized_weight(weight, "weight_only_int8")
                    y = weight_only_linear(half, packed, None, paddle.ones([32], dtype="float16"), "int8")
                error = np.abs(y.astype("float32").numpy() - expected).max()
        except Exception as failure:
            return f"its {capability} layer fails: {summary(str(failure))}"
        # NaN is no number below the bound either
        return "" if error <= _HALF_TOLERANCE * np.abs(expected).max() else f"its {capability} layer gives wrong numbers"

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Paddle's current device inside: events and streams belong to that one, and cannot be asked for on another."""
        import paddle

        before = paddle.device.get_device()
        paddle.set_device(self.name)
        try:
            yield
        finally:
            paddle.set_device(before)


def _with_full_range(values: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """``values`` [N, K], each channel of which must reach 127 for a quantiser that divides by the largest magnitude."""
    if bool((np.abs(values.astype(np.int16)).max(axis=1) == 127).all()):
        return values
    raise UnsupportedError("a channel's largest magnitude is not 127; this layout would be made with another scale")
