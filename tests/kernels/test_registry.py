"""Which implementation is chosen, and what is said about it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from paddle_ds.devices.base import Capabilities, Capability, DeviceOperator
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.errors import UnsupportedError
from paddle_ds.kernels import native
from paddle_ds.kernels.device_linear import Int8MatmulLinear
from paddle_ds.kernels.registry import Kernels, choose, implementations


def multiply(*arguments: Any) -> None:
    """Stands for an operator that a device brings along."""


class Elsewhere(CpuDevice):
    """A device that nothing was compiled for."""

    name = "npu:0"
    type = "npu"

    def __init__(self, *ops: Capability, brings: Mapping[str, Sequence[DeviceOperator]] | None = None) -> None:
        self._ops = frozenset(ops)
        self._brings = brings or {}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ops=self._ops, missing={"int8_gemm": "no such kernel"})

    def operators(self) -> Mapping[str, Sequence[DeviceOperator]]:
        return self._brings


def test_every_operator_has_a_reference_as_its_last_resort() -> None:
    assert {op: names[-1] for op, names in implementations().items()} == dict.fromkeys(implementations(), "reference")


def test_every_operator_is_chosen_and_reported() -> None:
    kernels = choose(CpuDevice())
    fields = {field.name for field in dataclasses.fields(Kernels)} - {"chosen", "passed_over"}
    assert set(kernels.chosen) == fields == set(implementations())
    assert all(name in implementations()[op] for op, name in kernels.chosen.items())


def test_a_device_nothing_is_compiled_for_gets_the_references() -> None:
    kernels = choose(Elsewhere())
    assert set(kernels.chosen.values()) == {"reference"}


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "why_unavailable", lambda: "no C++ compiler")


def test_what_is_passed_over_is_reported_with_the_reason(caplog: pytest.LogCaptureFixture, without_compiler: None) -> None:
    logger = logging.getLogger("paddle_ds")
    with caplog.at_level(logging.WARNING, "paddle_ds"):
        logger.addHandler(caplog.handler)
        kernels = choose(CpuDevice())
        logger.removeHandler(caplog.handler)
    assert set(kernels.passed_over) == set(implementations())
    assert set(kernels.passed_over.values()) == {"native: no C++ compiler"}
    assert {record.getMessage() for record in caplog.records} == {"kernel.fallback"}


def test_strict_turns_a_fallback_into_an_error(without_compiler: None) -> None:
    with pytest.raises(
        UnsupportedError, match=r"strict: operator rms_norm would fall back to reference because native: no C\+\+ compiler"
    ):
        choose(CpuDevice(), strict=True)


def test_a_device_with_an_int8_product_runs_int8_layers_on_it() -> None:
    kernels = choose(Elsewhere("int8_gemm"))
    assert kernels.chosen["int8_linear"] == "int8_gemm"
    assert kernels.int8_linear is Int8MatmulLinear
    assert "int8_linear" not in kernels.passed_over


def test_what_a_device_lacks_is_told_with_the_reason() -> None:
    passed_over = choose(Elsewhere()).passed_over
    assert set(passed_over) == {"int8_linear", "weight_only_linear"}
    assert passed_over["int8_linear"] == "int8_gemm: no such kernel; llm_int8: the device has no llm_int8"


def test_what_a_device_brings_along_comes_first() -> None:
    device = Elsewhere("int8_gemm", brings={"int8_linear": [DeviceOperator("acme", multiply)]})
    kernels = choose(device)
    assert (kernels.chosen["int8_linear"], kernels.int8_linear) == ("acme", multiply)


def test_only_names_the_implementation_to_take() -> None:
    kernels = choose(CpuDevice(), strict=True, only="reference")
    assert set(kernels.chosen.values()) == {"reference"}
    assert kernels.passed_over == {}
