"""The records of a coverage report; what each means, and the JSON made of them, is in docs/devices/coverage.md."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

PhaseName = Literal["prefill", "decode"]

#: kernels whose work is matrix products: plain, quantised, fused with what follows, and whole attentions and decoders.
#: Custom operators are here by the names that this project gave them
GEMM_KERNELS = frozenset(
    {
        "addmm",
        "baddbmm",
        "bmm",
        "fc",
        "fused_gemm_epilogue",
        "fused_linear_param_grad_add",
        "fused_matmul",
        "legacy_matmul",
        "linear_v2",
        "matmul",
        "matmul_with_flatten",
        "multi_dot",
        "mv",
        "llm_int8_linear",
        "weight_only_linear",
        "quant_linear",
        "block_multihead_attention",
        "flash_attn",
        "flash_attn_qkvpacked",
        "flash_attn_unpadded",
        "flash_attn_varlen_qkvpacked",
        "flashmask_attention",
        "fused_attention",
        "fused_dot_product_attention",
        "fused_feedforward",
        "fused_multi_transformer",
        "masked_multihead_attention",
        "memory_efficient_attention",
        "multihead_matmul",
        "self_dp_attention",
        "variable_length_memory_efficient_attention",
        "pds_decoder",
        "pds_float_linear",
        "pds_grouped_linear",
        "pds_int8_linear",
        "pds_paged_attention",
    }
)


@dataclasses.dataclass(frozen=True)
class MissingKernel:
    """A kernel that a step asked the device for and did not find.

    Attributes:
        reason: what the device has instead, or why its kernel is not taken.
        calls: in all steps of the phase.
        copied_bytes: for those calls, there and back.
    """

    kernel: str
    dtype: str
    reason: str
    calls: int
    copied_bytes: int

    def __str__(self) -> str:
        return f"{self.kernel} ({self.dtype})"


@dataclasses.dataclass(frozen=True)
class OperatorUse:
    """All calls of one kernel with one type, in one place.

    Attributes:
        dtype: of the kernel, which is that of its first input; empty for custom operators, whose type is not known.
        ran_on: ``device``, ``host`` (the CPU, because the operands lay there) or ``fallback`` (the CPU, for want of a kernel).
        gemm: it counts as matrix products.
        bytes_to_host: copied within the calls from the device to the host; ``bytes_to_device`` the other way.
        time_s: of all calls, until the device had finished, copies included.
    """

    kernel: str
    dtype: str
    ran_on: Literal["device", "host", "fallback"]
    gemm: bool
    custom: bool
    calls: int
    bytes_to_host: int
    bytes_to_device: int
    time_s: float


@dataclasses.dataclass(frozen=True)
class Phase:
    """All steps of one kind.

    Attributes:
        tokens: computed in all steps.
        step_s: duration of all steps, with what is between operators (Python, sampling); Paddle waits after each kernel here.
        uses: longest time first.
    """

    name: PhaseName
    steps: int
    tokens: int
    step_s: float
    uses: tuple[OperatorUse, ...]
    missing: tuple[MissingKernel, ...]

    @property
    def operator_s(self) -> float:
        return sum(use.time_s for use in self.uses)

    @property
    def calls(self) -> int:
        return sum(use.calls for use in self.uses)

    @property
    def fallback_calls(self) -> int:
        return sum(use.calls for use in self.uses if use.ran_on == "fallback")

    @property
    def fallback_bytes(self) -> int:
        """Copied because of fallbacks: their inputs to the host, their outputs back."""
        return sum(use.bytes_to_host + use.bytes_to_device for use in self.uses if use.ran_on == "fallback")

    def share(self, use: OperatorUse) -> float:
        """Of the operators' time in this phase."""
        return use.time_s / self.operator_s if self.operator_s else 0.0

    @property
    def time_on_device(self) -> float | None:
        """Share of the operators' time that is spent in operators of the device."""
        return _on_device(self.uses)

    @property
    def gemm_time_on_device(self) -> float | None:
        """Share of the time of matrix products; ``None`` where there are none."""
        return _on_device([use for use in self.uses if use.gemm])


@dataclasses.dataclass(frozen=True)
class CoverageReport:
    """Which operators of a prefill and of decode steps ran on ``device``.

    Attributes:
        disagreements: where the sources of the report contradict each other; empty when all is well.
    """

    device: str
    paddle_version: str
    prefill: Phase
    decode: Phase
    disagreements: tuple[str, ...] = ()

    @property
    def phases(self) -> tuple[Phase, Phase]:
        return self.prefill, self.decode

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the keys are documented and stay."""
        return {
            "device": self.device,
            "paddle_version": self.paddle_version,
            "phases": {phase.name: _phase_as_dict(phase) for phase in self.phases},
            "disagreements": list(self.disagreements),
        }


def is_gemm(kernel: str) -> bool:
    """Whether ``kernel`` counts as matrix products; an operator in place has an underscore behind its name."""
    return kernel.rstrip("_") in GEMM_KERNELS


def _on_device(uses: tuple[OperatorUse, ...] | list[OperatorUse]) -> float | None:
    total = sum(use.time_s for use in uses)
    return sum(use.time_s for use in uses if use.ran_on == "device") / total if total else None


def _phase_as_dict(phase: Phase) -> dict[str, Any]:
    return {
        "steps": phase.steps,
        "tokens": phase.tokens,
        "calls": phase.calls,
        "fallback_calls": phase.fallback_calls,
        "fallback_bytes": phase.fallback_bytes,
        "operator_s": phase.operator_s,
        "step_s": phase.step_s,
        "time_on_device": phase.time_on_device,
        "gemm_time_on_device": phase.gemm_time_on_device,
        "missing": [{"name": str(missing), **dataclasses.asdict(missing)} for missing in phase.missing],
        "operators": [{**dataclasses.asdict(use), "share": phase.share(use)} for use in phase.uses],
    }
