"""What the products of INT8 layers run on is known, counted, and refused where it is a fallback."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from paddle_ds.devices import environment
from paddle_ds.errors import UnsupportedError
from paddle_ds.kernels import native
from paddle_ds.kernels.products import Compiled, ProductCount

compiled_only = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))
ONEDNN = "brg_matmul:avx512_core_vnni"


class Layer:
    """Says what it runs on by its number of outputs: as oneDNN does, which takes full groups of columns only."""

    def __init__(self, weight: npt.NDArray[np.int8], *rest: object) -> None:
        self.num_out, self.num_in = weight.shape
        self.implementation = ONEDNN if weight.shape[0] % 64 == 0 else "own:avx512"


class OwnLayer:
    """Where oneDNN would not be exact."""

    def __init__(self, *rest: object) -> None:
        self.implementation = "own:avx2"


def make(products: ProductCount, *outputs: int) -> ProductCount:
    for count in outputs:
        products(np.zeros((count, 8), np.int8), np.ones(count, np.float32), None)
    return products


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Events that were logged as warnings."""
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logger, keep = logging.getLogger("paddle_ds"), Keep(logging.WARNING)
    logger.addHandler(keep)
    yield seen
    logger.removeHandler(keep)


def test_layers_are_counted_by_what_they_run_on(warnings: list[str]) -> None:
    products = make(ProductCount(Layer, ONEDNN, strict=True), 64, 128, 64)
    assert products.counts == {ONEDNN: 3}
    assert products.fallbacks() == {}
    assert warnings == []


def test_layers_on_our_own_loop_beside_onednn_are_said_once(warnings: list[str]) -> None:
    products = make(ProductCount(Layer, ONEDNN, strict=False), 64, 65, 64, 3)
    assert products.counts == {ONEDNN: 2, "own:avx512": 2}
    assert products.fallbacks() == {"int8_linear": f"{ONEDNN}: not for 2 of 4 layers, which run on own:avx512"}
    assert warnings == ["products.fallback"]


def test_strict_refuses_a_layer_on_our_own_loop_beside_onednn() -> None:
    with pytest.raises(UnsupportedError, match=f"strict: .* layer of 65 outputs and 8 inputs .* own:avx512 instead of {ONEDNN}"):
        make(ProductCount(Layer, ONEDNN, strict=True), 64, 65)


def test_our_own_loop_is_no_fallback_where_it_is_the_best(warnings: list[str]) -> None:
    products = make(ProductCount(OwnLayer, "own:avx2", strict=True), 64, 65)
    assert (products.counts, products.fallbacks(), warnings) == ({"own:avx2": 2}, {}, [])


def test_references_are_counted_and_are_the_registrys_affair() -> None:
    products = make(ProductCount(lambda *arrays: object(), "reference", strict=True), 64, 65)
    assert (products.counts, products.fallbacks()) == ({"reference": 2}, {})


@compiled_only
def test_the_library_says_what_it_uses() -> None:
    here = Compiled.here()
    assert here.library.endswith(".so")
    assert here.vector_isa in ("avx512", "avx2", "baseline")
    assert re.fullmatch(r"3\.\d+\.\d+", here.onednn_version)
    assert re.fullmatch(r"\w+:\w+", here.best_product)


@compiled_only
def test_caps_show_in_what_the_library_uses() -> None:
    code = (
        "import dataclasses, json\n"
        "from paddle_ds.devices.environment import isa_caps\n"
        "from paddle_ds.kernels.products import Compiled\n"
        "print(json.dumps([dataclasses.asdict(Compiled.here()), isa_caps()]))\n"
    )
    caps = {"PADDLE_DS_MAX_ISA": "baseline", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **caps}, capture_output=True, text=True, check=True)
    here, shown = json.loads(done.stdout.splitlines()[-1])
    assert (here["vector_isa"], here["best_product"], shown) == ("baseline", "own:baseline", caps)


@pytest.mark.parametrize("value", ["", "ALL", "default"])
def test_a_value_that_caps_nothing_is_no_cap(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", value)
    monkeypatch.setenv("PADDLE_DS_MAX_ISA", "avx512")
    assert environment.isa_caps() == {}
