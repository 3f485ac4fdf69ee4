"""``paddle-ds doctor``: what it finds when something is wrong."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from paddle_ds.cli import doctor as module
from paddle_ds.cli.doctor import Finding, doctor, examine
from paddle_ds.kernels import native
from paddle_ds.kernels.products import Compiled


def find(topic: str) -> list[Finding]:
    return [finding for finding in examine() if finding.topic == topic]


def pretend(monkeypatch: pytest.MonkeyPatch, **installed: str | None) -> None:
    """Other versions than those that are installed; ``None``: not installed at all."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        key = name.replace("-", "_")
        if key not in installed:
            return real(name)
        if installed[key] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(installed[key])

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_the_report_for_machines_parses() -> None:
    result = CliRunner().invoke(doctor, ["--json"], catch_exceptions=False)
    findings = json.loads(result.stdout)
    assert {"topic", "level", "text", "fix"} == set(findings[0])
    assert {finding["level"] for finding in findings} <= {"ok", "warning", "error"}
    assert {"paddle-ds", "versions", "compiler", "processor", "memory", "directories", "model", "operators"} <= {
        finding["topic"] for finding in findings
    }
    assert result.exit_code == any(finding["level"] == "error" for finding in findings)


def test_the_report_for_people_has_a_line_a_finding_and_the_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, paddlenlp="2.0")
    lines = CliRunner().invoke(doctor, [], catch_exceptions=False).stdout.splitlines()
    marks = [line for line in lines if line.startswith(("ok  ", "warn", "FAIL"))]
    fixes = [line for line in lines if line.strip().startswith("fix: ")]
    assert len(marks) + len(fixes) == len(lines)
    assert any("pip install paddlenlp==3.0.0b4" in line for line in fixes)


@pytest.mark.parametrize(
    ("installed", "level", "text"),
    [
        ({"paddlepaddle": "2.6.2"}, "error", "paddlepaddle 2.6.2 does not match paddlepaddle>=3.0,<4"),
        ({"paddlepaddle": None, "paddlepaddle_gpu": None}, "error", "paddlepaddle is not installed (needed for everything)"),
        ({"numpy": "2.1.0"}, "error", "numpy 2.1.0 does not match numpy<2"),
        ({"paddlenlp": "3.0.0b3"}, "warning", "paddlenlp 3.0.0b3 does not match paddlenlp==3.0.0b4"),
        ({"safetensors": None}, "warning", "safetensors is not installed (needed for hub names and quantisation)"),
        ({"paddlepaddle_gpu": "3.0.0", "paddlepaddle": "3.0.0"}, "error", "are both installed and provide the same module"),
        ({"paddlepaddle": "3.0.0rc1"}, "error", "paddlepaddle 3.0.0rc1 does not match"),
    ],
    ids=str,
)
def test_a_wrong_version_is_found_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str | None], level: str, text: str
) -> None:
    pretend(monkeypatch, **installed)
    wrong = [finding for finding in find("versions") if finding.level != "ok"]
    assert [(finding.level, bool(finding.fix)) for finding in wrong if text in finding.text] == [(level, True)]


def test_the_gpu_build_counts_as_paddle(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, paddlepaddle=None, paddlepaddle_gpu="3.1.0")
    assert "paddlepaddle 3.1.0" in [finding.text for finding in find("versions") if finding.level == "ok"]


@pytest.fixture
def _no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("_no_programs")
def test_no_compiler_is_found_with_a_fix() -> None:
    assert [(finding.level, finding.fix) for finding in find("compiler")] == [("warning", "apt-get install g++")]


@pytest.mark.parametrize("arguments", ["", " -O2"])
def test_the_compiler_in_cxx_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: str) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\necho my compiler 1.2\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler}{arguments}")
    assert [(finding.level, finding.text) for finding in find("compiler")] == [("ok", "my compiler 1.2")]


def test_a_bad_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_NUM_THREADS", "many")
    found = [finding for finding in find("environment") if finding.level == "error"]
    assert len(found) == 1
    assert "PADDLE_DS_NUM_THREADS='many'" in found[0].text


def test_a_directory_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = [finding for finding in find("directories") if finding.level == "error"]
    assert [finding.fix for finding in found] == ["set PADDLE_DS_CACHE_DIR to a directory you may write to"]


@pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))
def test_what_the_compiled_operators_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Compiled.here()
    found = {finding.topic: finding.text for finding in examine()}
    assert (found["vector-isa"], found["onednn"], found["products"]) == (
        here.vector_isa,
        here.onednn_version,
        here.best_product,
    )
    assert here.library in found["library"]
    assert "isa-cap" not in found
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert [(finding.level, finding.fix) for finding in find("isa-cap")] == [("warning", "unset ONEDNN_MAX_CPU_ISA")]


def test_a_check_that_fails_is_a_finding_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "'unbalanced")
    assert [finding.level for finding in find("compiler")] == ["error"]
    assert len(list(examine())) > len(module._PINS)


def test_the_embedded_model_is_whole() -> None:
    assert [finding.level for finding in find("model")] == ["ok"]
