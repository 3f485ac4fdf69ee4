"""The table of registered kernels: how Paddle's entries are read, and what a plug-in adds to it."""

from __future__ import annotations

import pytest
from paddle.base import core

from devices.coverage_runs import measured
from paddle_ds.devices.kernel_table import ANY_PLUGIN, ONEDNN, KernelTable, Registration
from paddle_ds.errors import UnsupportedError

ENTRIES = {
    "matmul": ["(CPU, Undefined(AnyLayout), float32)", "(ONEDNN, ONEDNN, bfloat16)", "(npu, Undefined(AnyLayout), int8)"],
    "reshape": ["(CPU, Undefined(AnyLayout), float32)", "(CUSTOM, Undefined(AnyLayout), float32)"],
    "slice": ["(CUSTOM, STRIDED, float32)", "(GPU, Undefined(AnyLayout), float16)", "(XPU, Undefined(AnyLayout), float16)"],
}


def test_an_entry_is_read_as_device_type_and_dtype() -> None:
    table = KernelTable.parse(ENTRIES)
    assert table.unparsed == ()
    assert table.kernels["matmul"] == {
        Registration("cpu", "float32"),
        Registration(ONEDNN, "bfloat16"),
        Registration("npu", "int8"),
    }
    assert table.kernels["reshape"] == {Registration("cpu", "float32"), Registration(ANY_PLUGIN, "float32")}


@pytest.mark.parametrize(
    ("kernel", "device_type", "dtype", "expected"),
    [
        ("matmul", "cpu", "float32", True),
        ("matmul", "cpu", "bfloat16", False),  # oneDNN's is not taken in eager mode
        ("matmul", "cpu", None, True),
        ("matmul", "npu", "int8", True),
        ("matmul", "npu", "float32", False),
        ("matmul", "mlu", None, False),
        ("reshape", "mlu", "float32", True),  # Paddle's own, for every plug-in
        ("reshape", "gpu", "float32", False),
        ("slice", "gpu", "float16", True),
        ("slice", "xpu", "float16", True),
        ("no_such_kernel", "cpu", None, False),
    ],
)
def test_a_kernel_is_found_for_its_device_and_type(kernel: str, device_type: str, dtype: str | None, expected: bool) -> None:
    assert KernelTable.parse(ENTRIES).has(kernel, device_type, dtype) is expected


def test_kernels_of_a_device_are_those_of_its_own() -> None:
    table = KernelTable.parse(ENTRIES)
    assert table.of("npu") == {"matmul"}
    assert table.dtypes("slice", "npu") == {"float32"}


def test_kernels_that_make_views_are_left_out_without_views() -> None:
    assert KernelTable.parse(ENTRIES, views=True).has("slice", "npu", "float32")
    assert not KernelTable.parse(ENTRIES, views=False).has("slice", "npu", "float32")


@pytest.mark.parametrize("text", ["", "float32", "(CPU, float32)", "(CPU, Undefined(AnyLayout), float32", "{data_type[float]}"])
def test_what_is_not_understood_is_kept_apart(text: str) -> None:
    table = KernelTable.parse({"matmul": [text, "(CPU, Undefined(AnyLayout), float32)"]})
    assert table.unparsed == (f"matmul: {text}",)
    assert table.kernels["matmul"] == {Registration("cpu", "float32")}


@pytest.mark.floor
def test_every_entry_of_this_paddle_is_understood() -> None:
    table = KernelTable.read()
    assert table.unparsed == ()
    assert table.has("matmul", "cpu", "float32")
    assert not table.has("matmul", "cpu", "int8"), "then the CPU needs no operator of ours"
    assert not table.has("matmul", "npu")
    assert not table.has("weight_only_linear", "cpu")


def test_a_paddle_that_lists_no_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(core, "_get_registered_phi_kernels")
    with pytest.raises(UnsupportedError, match="does not list its kernels"):
        KernelTable.read()


def test_a_plug_in_adds_its_kernels_and_no_others() -> None:
    full, reduced = measured()["table"], measured(kernels="full,-softmax")["table"]
    assert full["unparsed"] == full["of_others"] == []
    assert {"matmul", "softmax", "contiguous"} <= set(full["brought"])
    assert {"float32", "int8"} <= set(full["products"])
    assert (full["softmax"], reduced["softmax"]) == (True, False)
    assert set(full["brought"]) - set(reduced["brought"]) == {"softmax"}
    assert full["reshape"], "Paddle brings that for every plug-in"
    assert "reshape" not in full["brought"]
