"""From measured rounds to the table of targets. Pure: numbers in, rows out."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

OURS, LLAMA, OPENVINO = "ours", "llama.cpp", "openvino"
PEERS = (LLAMA, OPENVINO)
#: bytes of a weight as each engine stores it; a group of 32 shares a half-precision scale in Q8_0
BYTES_PER_WEIGHT = {OURS: 1.0, LLAMA: 34 / 32, OPENVINO: 1.0}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: medians over the rounds, what the target looks at, and the verdict."""

    figure: str
    unit: str
    ours: float | None
    peers: dict[str, float | None]
    #: what is held against the target: a median of per-round ratios, or a figure of ours
    value: float | None = None
    value_is: str = ""
    target: float | None = None
    at_least: bool = True
    #: why there is no value, where there is none
    reason: str = ""
    #: share of what the probe beside it allows, or the work a second, by engine
    floor: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``not measured: …``, or nothing where there is no target."""
        if self.target is None:
            return ""
        if self.value is None:
            return f"not measured: {self.reason or 'not asked for'}"
        return "met" if (self.value >= self.target if self.at_least else self.value <= self.target) else "missed"


def median(values: Sequence[float]) -> float | None:
    """The median, or nothing where there is nothing."""
    return statistics.median(values) if values else None


def median_ratio(rounds: Sequence[Mapping[str, float]], others: Sequence[str]) -> float | None:
    """Median over the rounds of ours by the best of ``others`` in the same round; rounds without both are left out."""
    ratios = [
        each[OURS] / max(each[other] for other in others if other in each)
        for each in rounds
        if OURS in each and any(other in each for other in others)
    ]
    return median(ratios)


def series(result: Mapping[str, Any], workload: str, rate: str) -> list[dict[str, float]]:
    """A figure by engine, a mapping a round."""
    rounds = result.get("compute", {}).get("rounds", [])
    return [{name: each[rate] for name, each in one.get(workload, {}).items()} for one in rounds]


def build(result: Mapping[str, Any]) -> list[Row]:
    """All rows, measured or not. ``result`` is what ``--json`` writes, without the table."""
    return [*_compute_rows(result), *_http_rows(result), *_own_rows(result)]


def _compute_rows(result: Mapping[str, Any]) -> list[Row]:
    decode = {count: series(result, f"streams_{count}", "decode_tokens_per_s") for count in (1, 8, 16)}
    prefill = series(result, "streams_1", "prefill_tokens_per_s")
    share = [_share(result, one) for one in result.get("compute", {}).get("rounds", [])]
    floor = {name: f"{value:.2f}" for name, value in _medians(share).items()}
    work = {name: f"{rate * result['facts']['linear_weights'] / 1e9:.0f} GMAC/s" for name, rate in _medians(prefill).items()}
    ours_share = median([each[OURS] for each in share])
    return [
        _against(result, "decode, 1 stream", decode[1], PEERS, 1.4, floor),
        dataclasses.replace(
            _alone("decode, 1 stream, share of read bandwidth", "", ours_share, 0.85, reason=_why(result, "compute")),
            peers={name: value for name, value in _medians(share).items() if name != OURS},
        ),
        _against(result, "prefill of 512", prefill, (OPENVINO,), 2.2, work),
        _against(result, "prefill of 512", prefill, (LLAMA,), 5.0, work),
        _against(result, "decode, 8 streams", decode[8], PEERS, None, {}),
        _against(result, "decode, 16 streams", decode[16], (OPENVINO,), 1.3, {}),
        _against(result, "decode, 16 streams", decode[16], (LLAMA,), 4.0, {}),
    ]


def _http_rows(result: Mapping[str, Any]) -> list[Row]:
    rounds = result.get("http", {}).get("rounds", [])
    rates = [{name: each["output_tokens_per_s"] for name, each in one.items()} for one in rounds]
    first = [{name: each["ttft_ms"]["p50"] for name, each in one.items() if each["ttft_ms"]} for one in rounds]
    medians = _medians(first)
    return [
        dataclasses.replace(_against(result, "16 chats over HTTP, output", rates, (LLAMA,), 4.0, {}, part="http")),
        Row("16 chats over HTTP, first token (p50)", "ms", medians.get(OURS), {LLAMA: medians.get(LLAMA)}),
    ]


def _own_rows(result: Mapping[str, Any]) -> list[Row]:
    itl, memory = result.get("itl", {}), result.get("memory", {})
    ratio = _alone("p99 by median gap while prompts of 2048 arrive", "", itl.get("ratio"), 3.0, False, _why(result, "itl"))
    if "ratio" in itl:
        floor = (
            f"{itl['p99_ms']:.0f} / {itl['median_ms']:.0f} ms; prompts' p99 by quiet median {itl['during_p99_over_quiet_median']}"
        )
        ratio = dataclasses.replace(ratio, floor={OURS: floor})
    peak = memory.get("peak_bytes")
    seconds = median(result.get("load", {}).get("first_token_s", []))
    rate = median(result.get("embedded", {}).get("tokens_per_s", []))
    rss = {name: value / 1e9 for name, value in result.get("compute", {}).get("peak_rss_bytes", {}).items()}
    return [
        ratio,
        _alone(
            "peak resident memory, 4096 KV tokens in use",
            "GB",
            peak / 1e9 if peak else None,
            memory_limit_bytes(result["facts"]["int8_bytes"]) / 1e9,
            False,
            _why(result, "memory"),
        ),
        _alone("W8A8 on disk to first token", "s", seconds, 6.0, False, _why(result, "load")),
        _alone("embedded model, 1 stream over HTTP", "tokens/s", rate, 400.0, True, _why(result, "embedded")),
        Row("peak resident memory of the workers", "GB", rss.get(OURS), {name: rss.get(name) for name in PEERS}),
    ]


def _against(
    result: Mapping[str, Any],
    figure: str,
    rounds: Sequence[Mapping[str, float]],
    others: Sequence[str],
    target: float | None,
    floor: dict[str, str],
    part: str = "compute",
) -> Row:
    """A rate of ours by that of one peer, or of the better one."""
    medians = _medians(rounds)
    missing = [f"{name} {result.get('unavailable', {})[name]}" for name in others if name in result.get("unavailable", {})]
    value = median_ratio(rounds, others)
    reason = "; ".join(missing) or _why(result, part)
    if value is not None and missing:
        figure += f" (without {', '.join(name for name in others if name in result['unavailable'])})"
    value_is = "x " + (others[0] if len(others) == 1 else "the better peer")
    peers = {name: medians.get(name) for name in PEERS}
    return Row(figure, "tokens/s", medians.get(OURS), peers, value, value_is, target, True, reason, floor)


def _alone(figure: str, unit: str, value: float | None, target: float, at_least: bool = True, reason: str = "") -> Row:
    """A figure of ours that is held against a number."""
    return Row(figure, unit, value, {}, value, unit, target, at_least, reason)


def memory_limit_bytes(int8_bytes: int) -> float:
    """Most that a serving engine may have resident: a quarter over its weights, and Paddle itself."""
    return 1.25 * int8_bytes + 0.4e9


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in rounds for name in each)
    return {name: statistics.median(each[name] for each in rounds if name in each) for name in names}


def _share(result: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of weights read a second by the probe beside them, for a single stream."""
    weights = result["facts"]["linear_weights"] + result["facts"]["head_weights"]
    return {
        name: each["decode_tokens_per_s"] * weights * BYTES_PER_WEIGHT[name] / 1e9 / each["probe_gb_s"]
        for name, each in one.get("streams_1", {}).items()
    }


def _why(result: Mapping[str, Any], part: str) -> str:
    return str(result.get("failed", {}).get(part, ""))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain data."""
    return [{**dataclasses.asdict(row), "verdict": row.verdict} for row in rows]


def as_text(rows: Sequence[Row], unavailable: Mapping[str, str]) -> str:
    """The table for a terminal; above it the peers that are not there, below it why a target was not measured."""
    head = ["figure", "ours", *PEERS, "ratio or value", "target", "verdict", "share of the floor, work"]
    lines = [head, *(_cells(row, unavailable) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    missing = [f"{name} is not available: {reason}" for name, reason in unavailable.items()]
    unmeasured = [row for row in rows if row.target is not None and row.value is None and row.reason]
    reasons = [f"{row.figure} ({row.value_is or 'ratio'}): {row.verdict}" for row in unmeasured]
    return "\n".join([*missing, text[0], "  ".join("-" * width for width in widths), *text[1:], *reasons])


def _cells(row: Row, unavailable: Mapping[str, str]) -> list[str]:
    peers = []
    for name in PEERS:
        figure = row.peers.get(name)
        absent = "not available" if name in unavailable and name in row.peers else "-"
        peers.append(absent if figure is None else _number(figure))
    unit = f", {row.unit}" if row.unit else ""
    value = "-" if row.value is None else _number(row.value)
    target = "" if row.target is None else f"{'>=' if row.at_least else '<='} {_number(row.target)} {row.value_is}".strip()
    floor = "; ".join(f"{name} {text}" for name, text in row.floor.items())
    ours = "-" if row.ours is None else _number(row.ours)
    return [row.figure + unit, ours, *peers, value, target, row.verdict.partition(":")[0], floor]


def _number(value: float) -> str:
    """Three digits that count, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
