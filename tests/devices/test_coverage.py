"""Operator coverage: what the report says is what the emulated device has seen."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from devices.coverage_runs import RUNS, measured
from devices.coverage_samples import LOG_3_0, LOG_3_3, Node
from devices.on_devices import ROOT, run
from paddle_ds import LLM
from paddle_ds.errors import PromptTooLong, UnsupportedError
from paddle_ds.kernels import native
from paddle_ds.runtime import coverage_log, coverage_time
from paddle_ds.runtime.coverage import decode_fallbacks, measure
from paddle_ds.runtime.coverage_log import Call


def calls_on_device(report: dict[str, Any]) -> dict[str, int]:
    """Kernel -> calls in both phases."""
    total: dict[str, int] = {}
    for phase in report["phases"].values():
        for use in phase["operators"]:
            if use["ran_on"] == "device":
                total[use["kernel"]] = total.get(use["kernel"], 0) + use["calls"]
    return total


def copied(report: dict[str, Any], direction: str) -> int:
    uses = [use for phase in report["phases"].values() for use in phase["operators"] if use["ran_on"] == "fallback"]
    return sum(use[direction] for use in uses)


def names(phase: dict[str, Any]) -> list[str]:
    return [missing["name"] for missing in phase["missing"]]


@pytest.mark.parametrize("views", ["0", "1"], ids=["without_views", "with_views"])
def test_with_all_kernels_all_products_and_operators_run_on_the_device(views: str) -> None:
    told = measured(views=views)
    for phase in told["report"]["phases"].values():
        assert (names(phase), phase["fallback_calls"], phase["fallback_bytes"]) == ([], 0, 0)
        assert phase["gemm_time_on_device"] == phase["time_on_device"] == 1.0
        assert {use["dtype"] for use in phase["operators"] if use["kernel"] == "matmul"} == {"int8", "float32"}
        assert 0 < phase["operator_s"] < phase["step_s"]
    assert told["report"]["disagreements"] == told["quick"] == []
    assert told["refused"] == ""


@pytest.mark.parametrize("views", ["0", "1"], ids=["without_views", "with_views"])
def test_the_device_has_launched_what_the_report_counts(views: str) -> None:
    told = measured(views=views)
    launched = {kernel: count for kernel, count in told["kernels"].items() if kernel != "contiguous"}  # part of other calls
    counted = {kernel: RUNS * calls for kernel, calls in calls_on_device(told["report"]).items()}
    assert launched.items() <= counted.items()
    assert set(counted) - set(launched) <= {"empty", "reshape", "transpose", "unsqueeze"}, (
        "views and empty tensors launch nothing"
    )


def test_one_kernel_taken_away_is_named_with_its_calls_and_copies() -> None:
    full, told = measured(), measured(kernels="full,-softmax")
    report = told["report"]
    assert [names(phase) for phase in report["phases"].values()] == [["softmax (float32)"]] * 2
    assert told["quick"] == ["softmax (float32)"]
    layers, decode = 4, report["phases"]["decode"]
    (missing,) = decode["missing"]
    assert missing["calls"] == decode["fallback_calls"] == layers * decode["steps"]
    assert missing["reason"] == "the device has no kernel of this name"
    assert missing["copied_bytes"] == decode["fallback_bytes"] > 0
    assert decode["time_on_device"] < 1.0
    assert decode["gemm_time_on_device"] == 1.0
    assert report["disagreements"] == []
    assert "softmax" not in told["kernels"]
    # what the device has copied beyond what it copies anyway: token ids up, logits down
    assert told["d2h"] - full["d2h"] == RUNS * copied(report, "bytes_to_host")
    assert told["h2d"] - full["h2d"] == RUNS * copied(report, "bytes_to_device")


def test_a_kernel_that_is_nowhere_is_an_error_that_names_it() -> None:
    assert measured(kernels="full,-softmax")["refused"] == (
        "the model cannot run on npu:0: kernel softmax (float32) is not registered for npu, "
        "and FLAGS_enable_api_kernel_fallback is off"
    )


class Page(HTMLParser):
    """Tags that are open, the text of cells, and what would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.cells[-1] += data


def test_the_command_shows_the_report_and_refuses_when_strict(tmp_path: Path) -> None:
    program = "from paddle_ds.cli.main import main; main()"
    page, file = tmp_path / "page.html", tmp_path / "report.json"
    options = ["--device", "npu:0", "--prompt-tokens", "6", "--decode-steps", "3", "--html", str(page), "--json", str(file)]
    more = {"CUSTOM_DEVICE_BLACK_LIST": "silu", "COLUMNS": "200"}
    done = run(program, "devices", "coverage", "--strict", *options, kernels="full,-matmul", more=more)
    assert done.returncode == 1
    assert "strict: operators of the decode step fall back to the CPU on npu:0: " in done.stderr
    assert "kernel run finish" not in done.stdout, "Paddle's own messages"

    told = json.loads(file.read_text(encoding="utf-8"))
    decode = told["phases"]["decode"]
    reasons = {missing["name"]: missing["reason"] for missing in decode["missing"]}
    assert reasons["matmul (float32)"] == "the device has no kernel of this name"
    assert reasons["silu (float32)"] == "CUSTOM_DEVICE_BLACK_LIST keeps it off the device"
    assert all(name in done.stderr for name in reasons)
    assert told["kernels"]["int8_linear"] == "llm_int8"
    assert 0 < decode["gemm_time_on_device"] < 1, "INT8 products have another kernel here, attention has none"
    assert told["disagreements"] == []
    assert "falls back: matmul (float32): the device has no kernel of this name" in done.stdout

    shown = Page(page.read_text(encoding="utf-8"))
    assert (shown.open, shown.loaded) == ([], [])
    for phase in told["phases"].values():
        for use in phase["operators"]:
            assert f"{use['kernel']} {use['dtype']}" in shown.cells
    assert shown.cells[:3] == ["operator", "prefill", "decode"]
    matmul = shown.cells.index("matmul float32")
    assert all("cpu (fallback)" in cell and "copied" in cell for cell in shown.cells[matmul + 1 : matmul + 3])
    assert any("npu:0" in cell for cell in shown.cells)


def test_the_list_shows_each_device_with_what_it_lacks() -> None:
    done = run("from paddle_ds.cli.main import main; main()", "devices", "list", "--json", kernels="full,-softmax")
    told = json.loads(done.stdout)
    assert [device["name"] for device in told["devices"]] == ["cpu", "npu:0", "npu:1"]
    assert told["plugins_not_loaded"] == []
    npu = told["devices"][1]
    assert (npu["type"], npu["index"], npu["profile"]) == ("npu", 0, "npu")
    assert "int8_gemm" in npu["capabilities"]
    assert npu["missing"]["paged_attention"]
    assert npu["memory"]["total_bytes"] == 1 << 30
    assert told["devices"][0]["missing"]["int8_gemm"]
    assert done.stderr == ""


@pytest.mark.floor
def test_on_the_cpu_the_compiled_operators_are_in_the_report() -> None:
    reason = native.why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    loaded = LLM(num_threads=1).loaded
    report = measure(loaded, prompt_tokens=5, decode_steps=2)
    assert report.disagreements == ()
    decoder = next(use for use in report.decode.uses if use.kernel == "pds_decoder")
    assert (decoder.calls, decoder.custom, decoder.gemm, decoder.ran_on) == (2, True, True, "device")
    assert decoder.time_s > 0
    assert report.decode.gemm_time_on_device == 1.0
    assert decode_fallbacks(loaded) == []
    assert "run" not in vars(native.library()), "the timing hook is taken away again"
    with pytest.raises(PromptTooLong):
        measure(loaded, prompt_tokens=loaded.runner.capacity_tokens)


@pytest.mark.floor
def test_the_log_goes_back_to_what_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    import paddle

    ones = paddle.ones([2, 3])
    (call,) = coverage_log.calls_of(lambda: paddle.nn.functional.softmax(ones))
    assert call == Call("softmax", "CPU", "float32")
    paddle.nn.functional.softmax(ones)
    assert capfd.readouterr() == ("", "")


def test_without_a_word_in_the_log_there_is_no_report() -> None:
    with pytest.raises(UnsupportedError, match="does not say in its log which operators it calls"):
        coverage_log.calls_of(lambda: None)


def test_a_call_in_the_log_has_its_own_copies_only() -> None:
    assert coverage_log.parse(LOG_3_3.splitlines()) == [
        Call("softmax", "npu", "float32", fell_back=True, bytes_to_host=24, bytes_to_device=16),
        Call("reshape", "npu", "float32"),
        Call("pds_decoder", "", ""),
    ]
    assert coverage_log.parse(LOG_3_0.splitlines()) == [Call("softmax", "CPU", "float32")]


def test_a_call_takes_as_long_as_it_does_without_the_calls_within() -> None:
    inner = Node("add dygraph", 20, 50, [Node("add kernel launch", 30, 40)])
    outer = Node("norm dygraph", 0, 100, [Node("norm infer_meta", 1, 2), inner, Node("norm kernel launch", 60, 90)])
    several = Node("split dygraph", 100, 130, [Node("split kernel launch", 101, 102), Node("copy kernel launch", 103, 104)])
    alone = Node("empty kernel launch", 200, 207)
    root = Node("root", 0, 300, [Node("matmul pybind_imperative_func", 0, 100, [outer]), several, alone])
    times = coverage_time.launches({1: root})
    nanoseconds = {kernel: [round(1e9 * seconds) for seconds in found] for kernel, found in times.items()}
    assert nanoseconds == {"norm": [70], "add": [30], "split": [30], "copy": [0], "empty": [7]}


def test_every_key_of_the_report_is_documented() -> None:
    page = (ROOT / "docs" / "devices" / "coverage.md").read_text(encoding="utf-8")
    report = measured(kernels="full,-softmax")["report"]
    decode = report["phases"]["decode"]
    keys = {*report, *decode, *decode["missing"][0], *decode["operators"][0], "model", "quant", "kernels"}
    documented = {
        key for line in page.splitlines() if line.startswith("| `") for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert keys == documented
