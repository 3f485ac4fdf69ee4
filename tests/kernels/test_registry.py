"""Which implementation is chosen, and what is said about it."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from paddle_ds.devices.base import Capabilities, MemoryStats
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.errors import UnsupportedError
from paddle_ds.kernels.registry import Kernels, choose, implementations


class Elsewhere:
    """A device that nothing was compiled for."""

    name = "npu:0"
    capabilities = Capabilities()

    def activate(self) -> None:
        raise NotImplementedError

    def memory_stats(self) -> MemoryStats:
        raise NotImplementedError


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


def test_what_is_passed_over_is_reported_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("paddle_ds")
    with caplog.at_level(logging.WARNING, "paddle_ds"):
        logger.addHandler(caplog.handler)
        kernels = choose(Elsewhere())
        logger.removeHandler(caplog.handler)
    better = {op for op, names in implementations().items() if len(names) > 1}
    assert set(kernels.passed_over) == better
    assert all("npu:0" in reason for reason in kernels.passed_over.values())
    assert {record.getMessage() for record in caplog.records} == {"kernel.fallback"}


def test_strict_turns_a_fallback_into_an_error() -> None:
    with pytest.raises(
        UnsupportedError, match="strict: operator rms_norm would fall back to reference because native: compiled for"
    ):
        choose(Elsewhere(), strict=True)


def test_only_names_the_implementation_to_take() -> None:
    kernels = choose(CpuDevice(), strict=True, only="reference")
    assert set(kernels.chosen.values()) == {"reference"}
    assert kernels.passed_over == {}
