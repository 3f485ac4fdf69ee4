"""``paddle-ds quantize`` as a user meets it: results, refusals, interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from paddle_ds.checkpoints import native, open_checkpoint
from paddle_ds.cli.main import cli
from paddle_ds.config.engine import EngineConfig
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.engine.build import load
from paddle_ds_slim.recipe import recipe_names

#: PaddleSlim's search takes a minute on this model; test_quant_steps.py runs it on a small layer
BASE_RECIPES = [name for name in recipe_names() if not name.startswith("kv8") and name != "w8a8-smooth-piecewise"]
#: small, so that a run takes seconds
FAST = ["--calib-self-generate", "32", "--eval-tokens", "200", "--no-gate"]


@pytest.fixture
def task(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One question instead of forty."""
    file = tmp_path_factory.mktemp("task") / "sums.jsonl"
    file.write_text('{"question": "What is 2 plus 3?", "answer": "#### 5"}\n')
    return ["--task", f"sums={file}"]


def quantize(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["quantize", *map(str, arguments)])


@pytest.mark.parametrize("recipe", [*BASE_RECIPES, "w8a8-smooth+kv8-static", "w4a16-gptq+kv8-dynamic"])
def test_every_recipe_makes_a_checkpoint_that_serves(tmp_path: Path, recipe: str, task: list[str]) -> None:
    result = quantize(EMBEDDED_MODEL, tmp_path / "out", "--recipe", recipe, *FAST, *task)
    assert result.exit_code == 0, (result.output, result.exception)
    passport = json.loads((tmp_path / "out" / "passport.json").read_text())
    assert passport["quantization"]["recipe"]["name"] == recipe
    assert passport["top1_agreement"] > (0.6 if recipe.startswith("w4") else 0.95)
    assert len(passport["layers"]) == 29
    assert (tmp_path / "out" / "passport.html").read_text().startswith("<!doctype html>")
    loaded = load(EngineConfig(model=str(tmp_path / "out"), max_context_tokens=64))
    assert loaded.plan.kv_dtype == ("int8" if "kv8" in recipe else "float32")
    assert not list(tmp_path.glob(".*")), "unfinished work is removed at the end"


def test_the_passport_is_printed_as_json(tmp_path: Path, task: list[str]) -> None:
    result = quantize(EMBEDDED_MODEL, tmp_path / "out", "--recipe", "w8a16-rtn", "--json", *FAST, *task)
    assert json.loads(result.stdout)["quantized"]["name"] == "out"


def test_recipes_are_listed() -> None:
    result = quantize("--list-recipes")
    assert result.exit_code == 0
    for name in recipe_names():
        assert name in result.output


def fail(*arguments: Any) -> tuple[str, str]:
    """Code and sentence of the error that a command ends with."""
    result = quantize(*arguments)
    assert result.exit_code != 0
    assert hasattr(result.exception, "code"), result.exception
    return result.exception.code, str(result.exception)


CALIBRATION = {
    "absent": (None, "no such file"),
    "empty": (b"", "empty"),
    "wrongly encoded": ("Grüße aus der Küche. ".encode("latin-1") * 400, "UTF-8"),
    "damaged": (b'{"text": "one"}\n{"text": "tw\n', "line 2"),
    "far too short": (b'{"text": "Two words."}', "tokens"),
}


@pytest.mark.parametrize(("content", "message"), CALIBRATION.values(), ids=CALIBRATION.keys())
def test_bad_calibration_data_end_in_a_clear_error_and_no_output(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "calibration.jsonl"
    if content is not None:
        file.write_bytes(content)
    code, sentence = fail(EMBEDDED_MODEL, tmp_path / "out", "--calib", file)
    assert code == "calibration_error"
    assert message in sentence
    assert file.name in sentence
    assert not (tmp_path / "out").exists()


def test_a_budget_beside_the_recipes_does_not_replace_them(tmp_path: Path, task: list[str]) -> None:
    fast = [option for option in FAST if option != "--no-gate"]
    result = quantize(EMBEDDED_MODEL, tmp_path / "out", "--recipe", "w8a16-rtn", "--max-kl", "5", *fast, *task)
    assert result.exit_code == 0, result.exception
    budgets = json.loads((tmp_path / "out" / "passport.json").read_text())["gate"]["budgets"]
    assert budgets == {"max_kl": 5, "max_ppl_increase": 0.02, "max_task_drop": 0.1}


def test_a_wrong_recipe_or_budget_is_refused_before_any_work(tmp_path: Path) -> None:
    assert fail(EMBEDDED_MODEL, tmp_path / "out", "--recipe", "w1a1")[0] == "recipe_error"
    assert fail(EMBEDDED_MODEL, tmp_path / "out", "--max-kl", "-1")[0] == "config_error"
    assert "contradict" in fail(EMBEDDED_MODEL, tmp_path / "out", "--max-kl", "0.1", "--no-gate")[1]
    assert "already there" in fail(EMBEDDED_MODEL, EMBEDDED_MODEL)[1]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_writing_leaves_no_checkpoint_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: list[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    arguments = (EMBEDDED_MODEL, tmp_path / "out", "--recipe", "w8a8-rtn", *FAST, *task)
    with monkeypatch.context() as patch:
        patch.setattr(native.SafetensorsWriter, "write", full)
        code, sentence = fail(*arguments)
    assert code == "checkpoint_error"
    assert "No space left on device" in sentence
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]
    assert quantize(*arguments).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_leaves_no_checkpoint_and_the_next_run_goes_on(tmp_path: Path, task: list[str]) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.work"
    arguments = ["quantize", str(EMBEDDED_MODEL), str(out), "--recipe", "w8a8-gptq", *FAST, *task]
    command = [sys.executable, "-m", "paddle_ds", *arguments]

    def heed_ctrl_c() -> None:  # where these tests run in the background of a shell, it is ignored, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=os.environ, preexec_fn=heed_ctrl_c, **pipes) as process:  # noqa: PLW1509
        deadline = time.monotonic() + 120
        while not list(work.glob("layer-00001*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    assert b"Traceback" not in said
    assert b"interrupted; what is finished is in" in said
    assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in work.glob("layer-*.safetensors")}
    assert kept
    result = quantize(*arguments[1:])
    assert result.exit_code == 0, result.exception
    with open_checkpoint(out) as written:
        assert len(written.schemes()) == 29
