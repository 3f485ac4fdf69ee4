"""``paddle-ds`` as a user meets it: commands, exit status, errors without tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from paddle_ds import __version__
from paddle_ds.cli.main import cli, main


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Exit status of ``paddle-ds ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["paddle-ds", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    assert all(f"\n  {name} " in output for name in ("bench", "chat", "doctor", "generate", "inspect"))


@pytest.mark.parametrize("name", ["bench", "chat", "doctor", "generate", "inspect"])
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert (result.exit_code, "Usage:" in result.output) == (0, True)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "/nowhere"], "error (checkpoint_not_found): /nowhere: no such directory"),
        (["inspect", "--config", "/nowhere.yaml"], "error (config_error): /nowhere.yaml: cannot be read"),
        (["generate", "hello", "--top-p", "7"], "error (invalid_request): top_p is 7.0"),
    ],
)
def test_an_error_of_ours_is_a_sentence_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(monkeypatch, *arguments) == 1
    output = capsys.readouterr()
    assert output.err.startswith(message)
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "No such command 'dance'"),
        (["inspect", "--nope"], "No such option"),
        (["inspect", "--quant", "int3"], "'int3' is not one of"),
        (["generate"], "give a prompt, or --input FILE"),
        (["generate", "--input", "/nowhere.txt"], "/nowhere.txt"),
    ],
)
def test_a_wrong_call_is_explained_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_bad_variable_is_an_error_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PADDLE_DS_STRICT", "perhaps")
    assert call(monkeypatch, "inspect") == 1
    assert "PADDLE_DS_STRICT='perhaps'" in capsys.readouterr().err


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "paddle_ds", "inspect", "/nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "paddle_ds", "inspect", "--json", "--tensors"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parent)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
