"""A coverage report as one web page: operators by phases, the darker the more of the phase's time. Needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from paddle_ds.cli.coverage_table import percent, place, summary
from paddle_ds.runtime.coverage_report import CoverageReport, OperatorUse, Phase
from paddle_ds.runtime.memory_plan import readable_bytes

#: red, green and blue: told apart by people who do not tell red from green, and by the words in the cell
_COLOURS = {"device": "33, 102, 172", "host": "110, 110, 110", "fallback": "217, 95, 2"}
_DARK_FROM = 0.55

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
body { color: #1a1a1a; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; padding: .3rem .6rem; font-weight: normal; }
td { padding: .3rem .6rem; border: 2px solid #fff; vertical-align: top; } td.none { color: #999; }
.type { color: #666; font-size: .85em; } .more { font-size: .85em; }
.key span { display: inline-block; padding: .1rem .6rem; margin-right: .5rem; color: #fff; }
"""


def render(report: CoverageReport, document: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        document: the report's JSON, with what is known of the model.
    """
    title = f"{document['model']} ({document['quant']}) on {report.device}"
    parts = [
        f"<h1>Operator coverage: {escape(title)}</h1>",
        f"<p>Paddle {escape(report.paddle_version)}</p>",
        *(f"<p>{escape(summary(phase, report.device))}.</p>" for phase in report.phases),
        *(f"<p><strong>Contradiction:</strong> {escape(sentence)}.</p>" for sentence in report.disagreements),
        _key(report.device),
        _table(report),
        *(_missing(phase) for phase in report.phases if phase.missing),
        "<h2>Implementations</h2>",
        f"<p>{', '.join(f'{escape(op)}: {escape(name)}' for op, name in document['kernels'].items())}</p>",
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _key(device: str) -> str:
    words = {"device": f"ran on {device}", "fallback": "fell back to the CPU", "host": "ran on the CPU, where its operands lay"}
    spans = "".join(f'<span style="background: rgb({_COLOURS[kind]})">{escape(text)}</span>' for kind, text in words.items())
    return f'<p class="key">{spans} The stronger the colour, the more of the phase’s operator time. Bold: matrix products.</p>'


def _table(report: CoverageReport) -> str:
    cells: dict[tuple[str, str], dict[str, list[OperatorUse]]] = {}
    for phase in (report.decode, report.prefill):  # the order of decoding, which lasts longest
        for use in phase.uses:
            cells.setdefault((use.kernel, use.dtype), {}).setdefault(phase.name, []).append(use)
    rows = []
    for (kernel, dtype), by_phase in cells.items():
        gemm = next(use.gemm for uses in by_phase.values() for use in uses)
        shown = f"<b>{escape(kernel)}</b>" if gemm else escape(kernel)
        name = f'{shown} <span class="type">{escape(dtype)}</span>'
        columns = "".join(_cell(phase, by_phase.get(phase.name, []), report.device) for phase in report.phases)
        rows.append(f'<tr><th scope="row">{name}</th>{columns}</tr>')
    heads = "".join(f'<th scope="col">{phase.name}</th>' for phase in report.phases)
    head = f'<thead><tr><th scope="col">operator</th>{heads}</tr></thead>'
    body = "\n".join(rows)
    return f"<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table>"


def _cell(phase: Phase, uses: list[OperatorUse], device: str) -> str:
    if not uses:
        return '<td class="none">–</td>'
    worst = max(uses, key=lambda use: (use.ran_on == "fallback", use.time_s))
    share = sum(phase.share(use) for use in uses)
    strength = 0.08 + 0.92 * math.sqrt(min(1.0, share))  # the root, so that small shares are still told apart
    text = "<br>".join(_words(phase, use, device) for use in uses)
    colour = "#fff" if strength > _DARK_FROM else "#1a1a1a"
    return f'<td style="background: rgba({_COLOURS[worst.ran_on]}, {strength:.2f}); color: {colour}">{text}</td>'


def _words(phase: Phase, use: OperatorUse, device: str) -> str:
    copied = (use.bytes_to_host + use.bytes_to_device) // phase.steps
    more = [f"{use.calls // phase.steps} calls", f"{1e3 * use.time_s / phase.steps:.3f} ms"]
    more += [f"{readable_bytes(copied)} copied"] if copied else []
    where = escape(place(use, device))
    return f'{percent(phase.share(use))} {where}<br><span class="more">{escape(", ".join(more))} a step</span>'


def _missing(phase: Phase) -> str:
    items = "".join(
        f"<li><strong>{escape(str(missing))}</strong>: {escape(missing.reason)}; {missing.calls // phase.steps} calls a step</li>"
        for missing in phase.missing
    )
    return f"<h2>Missing on the device in {phase.name}</h2>\n<ul>{items}</ul>"
