"""A coverage report in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paddle_ds.runtime.coverage_report import CoverageReport, OperatorUse, Phase
from paddle_ds.runtime.memory_plan import readable_bytes

_BAR = 10


def show(report: CoverageReport, document: Mapping[str, Any], console: Console) -> None:
    """Print a table for each phase, longest time first.

    Args:
        document: the report's JSON, with what is known of the model.
    """
    console.print(f"{document['model']}  {document['quant']}  on {report.device}", style="bold", highlight=False)
    implementations = "  ".join(f"{op} {name}" for op, name in document["kernels"].items())
    console.print(f"implementations: {implementations}", style="dim", highlight=False)
    for phase in report.phases:
        console.print()
        console.print(_table(phase, report.device))
        console.print(summary(phase, report.device), highlight=False)
        for missing in phase.missing:
            console.print(f"  falls back: {missing}: {missing.reason}", style="red", highlight=False)
    for sentence in report.disagreements:
        console.print(f"contradiction: {sentence}", style="red", highlight=False)


def summary(phase: Phase, device: str) -> str:
    """One sentence with the totals."""
    gemm, everything = percent(phase.gemm_time_on_device), percent(phase.time_on_device)
    where = f"{gemm} of the time of matrix products and {everything} of all operators is spent on {device}"
    if not phase.fallback_calls:
        return f"{phase.name}: {where}; nothing falls back to the CPU"
    copied = readable_bytes(phase.fallback_bytes // phase.steps)
    calls = f"{phase.fallback_calls // phase.steps} of {phase.calls // phase.steps}"
    return f"{phase.name}: {where}; {calls} calls a step fall back to the CPU, which copies {copied} a step"


def percent(share: float | None) -> str:
    """``99.6 %``; a dash where there is nothing to have a share of."""
    return "–" if share is None else f"{100 * share:.1f} %"


def place(use: OperatorUse, device: str) -> str:
    """Where the calls ran, in words."""
    return {"device": device, "host": "cpu (operands there)", "fallback": "cpu (fallback)"}[use.ran_on]


def _table(phase: Phase, device: str) -> Table:
    operators, step = (f"{1e3 * seconds / phase.steps:.1f} ms" for seconds in (phase.operator_s, phase.step_s))
    title = f"{phase.name}: {operators} of {step} a step are operators; a step computes {phase.tokens // phase.steps} token(s)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for header, justify in (("operator", "left"), ("type", "left"), ("ran on", "left")):
        table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for header in ("calls", "copied", "ms", "share"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for use in phase.uses:
        share = phase.share(use)
        copied = (use.bytes_to_host + use.bytes_to_device) // phase.steps
        table.add_row(
            use.kernel,
            use.dtype or "–",
            place(use, device),
            str(use.calls // phase.steps),
            readable_bytes(copied) if copied else "",
            f"{1e3 * use.time_s / phase.steps:.3f}",
            percent(share),
            Text("█" * round(_BAR * share), style="red" if use.ran_on == "fallback" else "blue"),
            style="red" if use.ran_on == "fallback" else None,
        )
    return table
