"""What ``measure`` reports in a process that sees the emulated device, and what the device itself has counted meanwhile."""

from __future__ import annotations

import functools
from typing import Any

from devices.on_devices import result

#: how often ``measure`` runs each step: to fill caches, for the log, and for the clock
RUNS = 1 + 1 + 3

MEASURED = """
import json, sys
from paddle_ds import LLM
from paddle_ds.errors import UnsupportedError
import emulated_device
loaded = LLM(device=sys.argv[1], max_context_tokens=256).loaded
import paddle
from paddle_ds.devices.kernel_table import KernelTable
from paddle_ds.runtime.coverage import decode_fallbacks, measure
emulated_device.reset_counters()
report = measure(loaded, prompt_tokens=8, decode_steps=2)
seen = emulated_device.counters(0)
told = {"report": report.as_dict(), "kernels": dict(seen.kernels), "d2h": seen.d2h.bytes, "h2d": seen.h2d.bytes}
told["violations"] = seen.violations
table = KernelTable.read()
told["table"] = {
    "brought": sorted(table.of("npu")),
    "of_others": sorted(table.of("mlu")),
    "unparsed": table.unparsed,
    "products": sorted(table.dtypes("matmul", "npu")),
    "softmax": table.has("softmax", "npu", "float32"),
    "reshape": table.has("reshape", "npu", "float32"),
}
told["quick"] = [str(missing) for missing in decode_fallbacks(loaded)]
paddle.set_flags({"FLAGS_enable_api_kernel_fallback": False})
try:
    decode_fallbacks(loaded)
    told["refused"] = ""
except UnsupportedError as error:
    told["refused"] = error.message
print(json.dumps(told))
"""


@functools.cache
def measured(kernels: str = "full", views: str = "1") -> dict[str, Any]:
    """Once a session for the same arguments.

    Args:
        views: ``FLAGS_use_stride_kernel``.
    """
    told: dict[str, Any] = result(MEASURED, "npu:0", kernels=kernels, more={"FLAGS_use_stride_kernel": views})
    assert told["violations"] == 0
    return told
