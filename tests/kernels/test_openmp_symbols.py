"""The compiled operators use one OpenMP runtime, Paddle's: what that lacks would come from another, or from nowhere."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import paddle
import pytest

from paddle_ds import settings
from paddle_ds.kernels import build, native

pytestmark = [
    pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable())),
    pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed"),
]


def test_paddles_runtime_has_every_openmp_function_that_is_called() -> None:
    current = settings.load()
    library = Path(current.operators) if current.operators else build.library(Path(current.cache_dir))
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].split("@")[0] for line in listed.splitlines()}
    called = sorted(name for name in names if name.startswith(("GOMP_", "omp_", "__kmpc_")))
    assert called
    # GOMP_loop_nonmonotonic_*, for one, came from libgomp: there each thread took every iteration, and 256 bytes stayed behind
    runtime = ctypes.CDLL(str(Path(paddle.__file__).parent / "libs" / "libiomp5.so"))
    assert [name for name in called if not hasattr(runtime, name)] == []
