"""Every test here runs on the references and, where they can be built, on the compiled operators."""

from __future__ import annotations

import pytest

from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.kernels import native
from paddle_ds.kernels.registry import Kernels, choose


@pytest.fixture(scope="session", params=["reference", "native"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    reason = native.why_unavailable() if request.param == "native" else None
    if reason is not None:
        pytest.skip(reason)
    return choose(CpuDevice(), only=request.param)
