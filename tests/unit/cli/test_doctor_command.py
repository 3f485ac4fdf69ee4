"""``paddle-ds doctor``: the report, its codes, its exit status."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from paddle_ds.cli import doctor as module
from paddle_ds.cli.checks import CODES, Context, Finding, Questions, pins
from paddle_ds.cli.checks.context import Skipped, run
from paddle_ds.cli.doctor import doctor
from paddle_ds.config.engine import CacheDtype, Quant

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def healthy() -> tuple[list[dict[str, str]], int]:
    """The report on this machine as it is, and the exit status."""
    result = CliRunner().invoke(doctor, ["--json"], catch_exceptions=False)
    return json.loads(result.stdout), result.exit_code


def test_the_report_for_machines_has_its_keys_and_codes(healthy: tuple[list[dict[str, str]], int]) -> None:
    findings, status = healthy
    assert {tuple(finding) for finding in findings} == {("code", "topic", "level", "text", "fix")}
    assert all(finding["level"] in CODES[finding["code"]] for finding in findings)
    assert status == any(finding["level"] == "error" for finding in findings)


def test_every_topic_is_in_the_report(healthy: tuple[list[dict[str, str]], int]) -> None:
    topics = {finding["topic"] for finding in healthy[0]}
    assert topics >= {
        *("paddle-ds", "versions", "compiler", "processor", "memory", "huge-pages", "limits", "directories", "server"),
        *("model", "devices", "operators", "flags"),
    }
    codes = {finding["code"] for finding in healthy[0]}
    assert codes >= {
        "program",
        "version",
        "processor",
        "memory",
        "limits",
        "files",
        "model",
        "model_fits",
        "devices",
        "operators",
    }


def test_the_embedded_model_is_whole(healthy: tuple[list[dict[str, str]], int]) -> None:
    assert [finding["level"] for finding in healthy[0] if finding["code"] == "model"] == ["ok"]


def test_the_report_for_people_has_a_line_a_finding_and_the_fixes(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = Finding("no_compiler", "compiler", "warning", "no g++", "apt-get install g++")
    assert module.tell([wrong, Finding("memory", "memory", "ok", "much")], as_json=False, strict=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        "warn  compiler     no g++",
        "                   fix: apt-get install g++",
        "ok    memory       much",
    ]


@pytest.mark.parametrize(
    ("codes", "strict", "status"),
    [
        (["memory"], False, 0),
        (["memory", "no_compiler"], False, 0),
        (["memory", "no_compiler"], True, 1),
        (["no_compiler", "two_paddles"], False, 1),
        (["memory"], True, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("as_json", [False, True], ids=["people", "machines"])
@pytest.mark.usefixtures("capsys")
def test_errors_end_with_1_and_with_strict_warnings_too(codes: list[str], strict: bool, status: int, as_json: bool) -> None:
    findings = [Finding(code, "topic", CODES[code][0], "text") for code in codes]
    assert module.tell(findings, as_json=as_json, strict=strict) == status


ASKED = ["--model", "m", "--device", "npu:1", "--quant", "w8a8", "--max-context-tokens", "8192", "--port", "9000", "--strict"]


@pytest.mark.parametrize("arguments", [[], ["--json"], ASKED], ids=str)
def test_both_readers_of_the_command_line_understand_the_same(arguments: list[str]) -> None:
    assert module.parsed(arguments) == doctor.make_context("doctor", [*arguments]).params


def test_every_question_has_an_option() -> None:
    assert {option.field for option in module.OPTIONS} == {field.name for field in dataclasses.fields(Questions)} | {"json"}
    choices = {option.field: option.choices for option in module.OPTIONS if option.choices}
    assert choices == {"quant": typing.get_args(Quant), "kv_dtype": typing.get_args(CacheDtype)}


@pytest.mark.parametrize("wrong", [["--port", "0"], ["--port", "70000"], ["--quant", "int3"], ["--nope"], ["word"]], ids=str)
def test_a_wrong_call_ends_with_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        module.without_click(wrong)
    assert (end.value.code, CliRunner().invoke(doctor, wrong).exit_code) == (2, 2)


def _fail(context: Context) -> Iterator[Finding]:
    yield Finding("memory", "memory", "ok", "before")
    raise RuntimeError("broken")


def _need(context: Context) -> Iterator[Finding]:
    raise ModuleNotFoundError("No module named 'msgspec'", name="msgspec.json")
    yield


def _skip(context: Context) -> Iterator[Finding]:
    raise Skipped("it rains")
    yield


def test_a_check_that_cannot_be_made_is_a_finding_and_stops_no_other() -> None:
    found = list(run([("one", _fail), ("two", _need), ("three", _skip)], Context(installed={})))
    assert [(finding.code, finding.topic, finding.level) for finding in found] == [
        ("memory", "memory", "ok"),
        ("check_failed", "one", "error"),
        ("check_skipped", "two", "warning"),
        ("check_skipped", "three", "warning"),
    ]
    assert "the module msgspec is not installed" in found[2].text


def test_a_module_of_our_own_that_is_missing_is_a_defect() -> None:
    def check(context: Context) -> Iterator[Finding]:
        raise ModuleNotFoundError("No module named 'paddle_ds.nothing'", name="paddle_ds.nothing")
        yield

    assert [finding.code for finding in run([("topic", check)], Context(installed={}))] == ["check_failed"]


def test_a_finding_has_a_known_code_and_level() -> None:
    with pytest.raises(AssertionError, match="no_such_code is not a code"):
        Finding("no_such_code", "topic", "ok", "text")
    with pytest.raises(AssertionError, match="two_paddles is not a code of level ok"):
        Finding("two_paddles", "topic", "ok", "text")


def test_every_code_is_in_the_page_with_its_levels() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ((?:ok|warning|error|, )+) \|", page, re.MULTILINE))
    assert rows == {code: ", ".join(levels) for code, levels in CODES.items()}


def test_every_option_is_in_the_page() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [option.name for option in module.OPTIONS if f"`{option.name}" not in page] == []


def test_every_code_is_provoked_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_doctor_*.py"))
    assert [code for code in CODES if f'"{code}"' not in tests] == []


def test_the_tables_of_versions_are_those_of_setup_py() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    hub = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and _name(node) == "HUB")
    call = next(node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    assert tuple(ast.literal_eval(arguments["install_requires"])) == pins.CORE
    extras = arguments["extras_require"]
    assert isinstance(extras, ast.Dict)
    listed = {ast.literal_eval(key): value for key, value in zip(extras.keys, extras.values, strict=True) if key is not None}
    assert _plain(listed["cpu"]) == [pins.PADDLE]
    for extra in pins.EXTRAS:
        assert (hub if extra.name == "hub" else _plain(listed[extra.name])) == list(extra.requirements)


def _plain(node: ast.expr) -> list[str]:
    """The strings in a list of the source, without what it takes over from another list."""
    assert isinstance(node, ast.List)
    return [ast.literal_eval(each) for each in node.elts if isinstance(each, ast.Constant)]


def _name(node: ast.Assign) -> str:
    target = node.targets[0]
    return target.id if isinstance(target, ast.Name) else ""
