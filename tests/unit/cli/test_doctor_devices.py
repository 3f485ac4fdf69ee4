"""``paddle-ds doctor``: plug-ins, devices, operators, flags, and a Paddle that fails."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import emulated_device
from paddle_ds.cli.checks import Context, Distribution, Finding, Questions, devices, distributions, in_paddle, model, operators
from paddle_ds.devices import environment
from paddle_ds.kernels import native
from paddle_ds.kernels.products import Compiled

PADDLE = {"paddlepaddle": Distribution("paddlepaddle", "3.3.1")}


def texts(findings: list[Finding], code: str) -> list[str]:
    return [finding.text for finding in findings if finding.code == code]


def in_a_process(monkeypatch: pytest.MonkeyPatch, asked: Questions, **variables: str) -> list[Finding]:
    """What is found where Paddle is loaded with these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return list(devices.check(Context(asked)))


@pytest.fixture(scope="module")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    """A machine with two small devices whose plug-in has no kernels, another vendor's tool, and flags that do nothing."""
    directory = tmp_path_factory.mktemp("equipped")
    flags = "auto_growth_chunk_size_in_mb: 1, use_pinned_memory: false"
    (directory / "engine.yaml").write_text(f"memory: {{flags: {{{flags}}}}}", encoding="utf-8")
    (directory / "cnmon").write_text("#!/bin/sh\n", encoding="utf-8")
    (directory / "cnmon").chmod(0o755)
    given = emulated_device.environment(
        "npu", memory_bytes=64 << 20, kernels="none", visible_variable="ASCEND_RT_VISIBLE_DEVICES"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        return in_a_process(
            monkeypatch,
            Questions(device="npu:1", config=str(directory / "engine.yaml")),
            **given,
            ASCEND_RT_VISIBLE_DEVICES="1,0",
            PATH=f"{directory}{os.pathsep}{os.environ['PATH']}",
            FLAGS_enable_memory_optim="1",
            FLAGS_no_such_flag="1",
        )


def test_plug_ins_are_told(equipped: list[Finding]) -> None:
    assert [text.endswith("libemulated_device.so can be loaded") for text in texts(equipped, "plugin_found")] == [True]
    assert texts(equipped, "devices") == ["cpu; plug-ins: npu"]


def test_devices_are_told_with_memory_and_capabilities(equipped: list[Finding]) -> None:
    first, second = texts(equipped, "device")
    assert first.startswith("npu:0: 0.1 of 0.1 GB free; matrix products in ")
    assert second.startswith("npu:1: ")
    assert "no int8_gemm: no kernel matmul for int8 is registered" in first
    assert "INT8 layers will be widened to float32 on npu:0" in texts(equipped, "device_problem")[0]
    assert texts(equipped, "devices_visible") == [
        "ASCEND_RT_VISIBLE_DEVICES=1,0 lets this process see 2, counted from npu:0 in that order"
    ]


def test_a_tool_of_a_chip_that_paddle_cannot_drive_is_told(equipped: list[Finding]) -> None:
    said = "cnmon is here, but this Paddle cannot drive what it is for (Cambricon): "
    assert any(text.startswith(said) for text in texts(equipped, "device_tool_found"))


def test_the_model_is_fitted_to_the_memory_of_the_device(equipped: list[Finding]) -> None:
    (text,) = texts(equipped, "model_too_large")
    assert "npu:1 has 67.1 MB available" in text


def test_slower_operators_on_the_device_are_told(equipped: list[Finding]) -> None:
    assert any("on npu:1: " in text for text in texts(equipped, "operators"))
    assert any(text.startswith("int8_linear runs on reference; passed over") for text in texts(equipped, "operator_fallback"))


def test_flags_that_do_nothing_are_told(equipped: list[Finding]) -> None:
    configured, unknown = texts(equipped, "flag_ignored")
    assert configured.startswith("FLAGS_use_pinned_memory=False of the configuration: no effect here: ")
    assert unknown.startswith("FLAGS_no_such_flag=1 of the environment: unknown to this Paddle: ")
    (replaced,) = [finding for finding in equipped if finding.code == "flag_replaced"]
    assert replaced.text.startswith("FLAGS_enable_memory_optim=1 of the environment: replaced: ")
    assert replaced.fix == "unset it, and use inference_memory_optim"


def test_flags_that_do_something_are_told(equipped: list[Finding]) -> None:
    (text,) = texts(equipped, "flag_effective")
    assert text.startswith("FLAGS_auto_growth_chunk_size_in_mb=1 of the configuration: effective: ")


def test_devices_that_a_variable_hides_are_told_from_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    given = emulated_device.environment("npu", visible_variable="ASCEND_RT_VISIBLE_DEVICES")
    found = in_a_process(monkeypatch, Questions(), **given, ASCEND_RT_VISIBLE_DEVICES="-1")
    assert texts(found, "devices_hidden") == ["ASCEND_RT_VISIBLE_DEVICES=-1 hides every npu from this process"]
    assert "but Paddle has got no device type from it" in texts(found, "plugin_not_loaded")[0]


@pytest.fixture
def _paddle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle in this process, and its environment as it was afterwards."""
    for name in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "GLOG_minloglevel", "CUSTOM_DEVICE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOG_minloglevel", "1")
    environment.import_paddle()
    in_paddle.libraries_here.cache_clear()


@pytest.mark.usefixtures("_paddle")
def test_a_device_whose_plug_in_is_absent_is_an_error_that_names_it() -> None:
    (found,) = in_paddle.asked_for(Context(Questions(device="npu:0")))
    assert (found.code, found.level) == ("device_not_found", "error")
    assert "paddle-custom-npu" in found.text
    assert "CUSTOM_DEVICE_ROOT" in found.text
    (found,) = in_paddle.asked_for(Context(Questions(device="NPU zero")))
    assert "'NPU zero' is not a device name" in found.text
    assert list(in_paddle.asked_for(Context(Questions(device="cpu")))) == []


@pytest.mark.usefixtures("_paddle")
@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("{0}/nowhere", "is not a directory"),
        ("{0}", "which holds no lib*.so"),
        ("{0}:{0}", "is not a directory: Paddle takes it as one path, not as a list of several"),
    ],
)
def test_a_root_without_plug_ins_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str, said: str) -> None:
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", root.format(tmp_path))
    (found,) = in_paddle.libraries(Context(installed={}))
    assert (found.code, found.level, said in found.text) == ("plugin_root_wrong", "warning", True)


WITH_PLUGIN = Context(installed={**PADDLE, "paddle-custom-npu": Distribution("paddle-custom-npu", "3.2.0")})


@pytest.mark.usefixtures("_paddle")
def test_an_installed_plug_in_that_shows_no_device_is_found() -> None:
    (found,) = [finding for finding in in_paddle.loaded(WITH_PLUGIN) if finding.code == "plugin_not_loaded"]
    assert found.text.startswith("paddle-custom-npu 3.2.0 is installed, but Paddle has no device type npu: CUSTOM_DEVICE_ROOT")


@pytest.mark.usefixtures("_paddle")
@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        ("one", "visible_devices_wrong", "'one' is not the number of a device"),
        ("0,0", "visible_devices_wrong", "stands there twice"),
        ("", "devices_hidden", "hides every npu"),
        ("all", "devices_visible", "see all"),
        ("3", "devices_visible", "see 1, counted from npu:0"),
    ],
)
def test_variables_that_choose_devices_are_read(monkeypatch: pytest.MonkeyPatch, value: str, code: str, text: str) -> None:
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", value)
    (found,) = in_paddle.visible(WITH_PLUGIN)
    assert (found.code, text in found.text) == (code, True)
    assert list(in_paddle.visible(Context(installed=PADDLE))) == []  # nothing here could drive such devices


@pytest.mark.usefixtures("_paddle")
def test_a_device_that_is_asked_for_and_hidden_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "-1")
    (found,) = in_paddle.asked_for(dataclasses.replace(WITH_PLUGIN, asked=Questions(device="npu:0")))
    assert (found.code, found.level) == ("device_not_found", "error")
    assert found.fix.startswith("ASCEND_RT_VISIBLE_DEVICES=-1 hides every device; unset it")


@pytest.mark.usefixtures("_paddle")
def test_flags_in_order_are_a_fact() -> None:
    (found,) = in_paddle.ignored({}, Context(installed={}))
    assert (found.code, found.text) == ("flags", "Paddle's flags in the environment: none is set")


@pytest.mark.usefixtures("_paddle")
def test_an_unknown_flag_of_the_configuration_is_an_error_where_fallbacks_are(tmp_path: Path) -> None:
    path = tmp_path / "engine.yaml"
    path.write_text("memory: {flags: {no_such_flag: 1}}", encoding="utf-8")
    found = [*in_paddle.configured(Context(Questions(config=str(path), strict=True), installed={}))]
    assert [(finding.code, finding.level) for finding in found] == [("config_wrong", "error")]
    assert list(in_paddle.configured(Context(Questions(config="/nowhere.yaml"), installed={}))) == []


WIDGET = """
from paddle_ds.devices.base import Capabilities, Problem
from paddle_ds.devices.cpu import CpuDevice

class Widget(CpuDevice):
    type, capabilities = "widget", Capabilities(missing={"memory_stats": "it was forgotten"})
    def __init__(self, name):
        self.name = name
    def preflight(self):
        return [Problem("error", "the widget is cold", "warm it")]
"""


@pytest.fixture
def _widget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another package's device, which tells no memory and cannot be used."""
    info = tmp_path / "widgets-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: widgets\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[paddle_ds.devices]\nwidget = widgets_of_ours:Widget\n", encoding="utf-8")
    (tmp_path / "widgets_of_ours.py").write_text(WIDGET, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("widgets_of_ours", None)


@pytest.mark.usefixtures("_paddle", "_widget")
@pytest.mark.parametrize(("asked", "level"), [("widget:0", "error"), ("cpu", "warning")])
def test_what_a_device_says_of_itself_is_an_error_for_who_wants_it(asked: str, level: str) -> None:
    found = {finding.code: finding for finding in in_paddle.present(Context(Questions(device=asked)))}
    assert found["device"].text.startswith("widget:0: tells no memory; ")
    problem = found["device_problem"]
    assert (problem.level, problem.text, problem.fix) == (level, "the widget is cold", "warm it")


@pytest.mark.usefixtures("_paddle", "_widget")
def test_a_device_that_tells_no_memory_needs_a_size_of_the_cache() -> None:
    (found,) = model.on_device(Context(Questions(device="widget:0")))
    assert (found.code, "widget:0 does not tell its memory (it was forgotten)" in found.text) == ("memory_unknown", True)
    assert list(model.on_device(Context(Questions(device="widget:0", kv_tokens=512)))) == []


@pytest.mark.usefixtures("_paddle", "_widget")
@pytest.mark.parametrize(("asked", "variable", "level"), [(False, "", "warning"), (True, "", "error"), (False, "1", "error")])
def test_fallbacks_are_errors_where_they_are_refused(
    monkeypatch: pytest.MonkeyPatch, asked: bool, variable: str, level: str
) -> None:
    monkeypatch.setenv("PADDLE_DS_STRICT", variable)
    found = list(operators.check(Context(Questions(device="widget:0", strict=asked))))
    assert {finding.level for finding in found if finding.code == "operator_fallback"} == {level}


@pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))
@pytest.mark.usefixtures("_paddle")
def test_what_the_compiled_operators_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Compiled.here()
    context = Context(installed=distributions())
    found = {finding.code: finding for finding in operators.check(context)}
    assert (found["vector_isa"].text, found["onednn"].text, found["products"].text) == (
        here.vector_isa,
        here.onednn_version,
        here.best_product,
    )
    assert here.library in found["library"].text
    assert "isa_capped" not in found
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    capped = [finding for finding in operators.check(context) if finding.code == "isa_capped"]
    assert [(finding.level, finding.fix) for finding in capped] == [("warning", "unset ONEDNN_MAX_CPU_ISA")]


def with_paddle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, limit_s: float) -> list[Finding]:
    """Another Paddle: one that does ``source`` when it is imported."""
    (tmp_path / "paddle.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CUSTOM_DEVICE_ROOT", str(tmp_path / "nowhere"))
    return list(devices.check(Context(installed=PADDLE), limit_s))


def test_a_paddle_that_aborts_ends_neither_the_doctor_nor_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_paddle(tmp_path, monkeypatch, "import os\nos.write(2, b'the last words\\n')\nos.abort()\n", 60)
    assert [finding.code for finding in found] == ["plugin_root_wrong", "paddle_crashed"]
    assert found[1].level == "error"
    assert "ended with signal 6 (SIGABRT): the last words" in found[1].text
    assert "CUSTOM_DEVICE_ROOT" in found[1].fix


def test_a_paddle_that_cannot_be_imported_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_paddle(tmp_path, monkeypatch, "raise ImportError('libgomp.so.1: cannot open shared object file')\n", 60)
    assert [finding.code for finding in found] == ["plugin_root_wrong", "paddle_unusable"]
    assert "ImportError: libgomp.so.1: cannot open shared object file" in found[1].text
    assert found[1].fix.endswith("(apt-get install libgomp1)")


def test_a_library_that_keeps_paddle_from_being_imported_is_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "nowhere" / "libtext.so"
    library.parent.mkdir()
    library.write_text("not a library", encoding="utf-8")
    found = with_paddle(tmp_path, monkeypatch, "raise ValueError('Fail to open library')\n", 60)
    assert [finding.code for finding in found] == ["plugin_not_loaded", "paddle_unusable"]
    assert found[0].text.startswith(f"{library} is not loaded: ")
    assert found[1].fix.startswith(f"remove {library}, or install what it is linked against")


def test_a_paddle_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    source = (
        "import subprocess\n"
        "sleep = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(started)!r}, 'w').write(str(sleep.pid))\n"
        "sleep.wait()\n"
    )
    found = with_paddle(tmp_path, monkeypatch, source, 5)
    assert (found[-1].code, found[-1].level) == ("paddle_hangs", "error")
    assert is_dead(int(started.read_text()))


def is_dead(pid: int) -> bool:
    """Gone, or waiting for who inherited it to ask for its status. Being killed takes a moment."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_without_paddle_no_process_is_started() -> None:
    assert list(devices.check(Context(installed={}), limit_s=0)) == []
