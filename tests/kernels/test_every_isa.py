"""The grids again under each instruction set that this processor has; the environment caps our own loops and oneDNN."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_ds.kernels import native

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

GRIDS = [
    str(Path(__file__).with_name(f"test_{name}.py"))
    for name in ("oracle_grid", "grouped_linear", "fused_decoder", "static_kv_scales")
]
#: our cap, oneDNN's, and what must not be in the name of what then multiplies INT8
CAPS = [
    ("avx512", "AVX512_CORE_VNNI", ("amx",)),
    ("avx512", "AVX512_CORE", ("amx",)),
    ("avx2", "AVX2", ("amx", "avx512")),
    ("baseline", "SSE41", ("amx", "avx512", "avx2", "vnni")),
]
RUN = """
import sys, numpy, pytest
from paddle_ds.kernels import native
layer = native.NativeInt8Linear(numpy.ones((64, 64), numpy.int8), numpy.ones(64, numpy.float32), None)
status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[1:]])
print("ran", native.library().vector_isa, layer.implementation)
sys.exit(status)
"""


@pytest.mark.parametrize(("isa", "onednn", "excluded"), CAPS, ids=[f"{isa}-{onednn}" for isa, onednn, _ in CAPS])
def test_the_grids_hold_under_a_cap(isa: str, onednn: str, excluded: tuple[str, ...]) -> None:
    environ = {**os.environ, "PADDLE_DS_MAX_ISA": isa, "ONEDNN_MAX_CPU_ISA": onednn}
    done = subprocess.run([sys.executable, "-c", RUN, *GRIDS], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    _, ran, implementation = done.stdout.splitlines()[-1].split()
    order = ["baseline", "avx2", "avx512"]
    assert order.index(ran) <= order.index(isa)
    assert not [name for name in excluded if name in implementation]
    if "avx512_vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):  # a lesser processor stays below the higher caps
        assert ran == isa
