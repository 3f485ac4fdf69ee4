"""Runs every case of ``kernel_cases`` on the CPU and on ``npu:0``, and prints as JSON what is wrong with each.

Paddle must not fall back to the CPU here (``FLAGS_enable_api_kernel_fallback=0``), so what has run has run on the device.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from paddle_ds.devices import environment

environment.prepare(None)
environment.import_paddle()

import paddle  # noqa: E402

import emulated_device  # noqa: E402
from devices.kernel_cases import CASES, Case, Maker  # noqa: E402


def arrays(result: Any) -> list[Any]:
    """What a case gave, as NumPy arrays; 16-bit floats as float32."""
    found = []
    for item in result if isinstance(result, list | tuple) else [result]:
        if not isinstance(item, paddle.Tensor):
            found.append(np.asarray(item))
            continue
        host = item.cpu()
        found.append(host.astype("float32").numpy() if host.dtype in (paddle.float16, paddle.bfloat16) else host.numpy())
    return found


def on_device(case: Case) -> list[Any]:
    paddle.set_device("npu:0")
    paddle.set_flags({"FLAGS_use_stride_kernel": case.strides})
    try:
        found = arrays(case.run(paddle, Maker(paddle, halves=True)))
    finally:
        paddle.set_flags({"FLAGS_use_stride_kernel": True})
    return found


def on_host(case: Case) -> list[Any]:
    paddle.set_device("cpu")
    make = Maker(paddle, halves=False)
    return arrays(case.expected(make) if case.expected else case.run(paddle, make))


def fault_of(case: Case) -> str:
    """What is wrong, or nothing."""
    try:
        emulated_device.reset_counters()
        found, wanted = on_device(case), on_host(case)
        if not emulated_device.counters().kernels.get(case.kernel):
            return f"{case.kernel} was not launched: {dict(emulated_device.counters().kernels)}"
        if len(found) != len(wanted):
            return f"{len(found)} results, not {len(wanted)}"
        for left, right in zip(found, wanted, strict=True):
            if left.shape != right.shape:
                return f"shape {left.shape}, not {right.shape}"
            tolerance = case.tolerance if left.dtype.kind == "f" else 0
            np.testing.assert_allclose(left.astype(np.float64), right.astype(np.float64), tolerance, tolerance)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[-600:]}"
    return ""


def main() -> None:
    faults = {name: fault_of(case) for name, case in CASES.items()}
    registered = paddle.base.core._get_registered_phi_kernels("all")
    kernels = sorted(name for name, keys in registered.items() if any(key.startswith("(npu,") for key in keys))
    violations = sum(emulated_device.counters(device).violations for device in range(2))
    print(json.dumps({"faults": faults, "kernels": kernels, "violations": violations}))


if __name__ == "__main__":
    main()
