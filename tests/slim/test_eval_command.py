"""``paddle-ds eval``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from checkpoints import makers
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import CalibrationError, CheckpointNotFound, ConfigError, QualityGateError
from paddle_ds_slim.eval_command import evaluate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that does not chat, with a text beside it."""
    directory = tmp_path_factory.mktemp("eval") / "tiny"
    config = makers.config_json(vocab_size=1024)
    makers.write_hf(directory, config, makers.random_tensors(config))
    shutil.copy(EMBEDDED_MODEL / "tokenizer.json", directory)
    content = json.loads((EMBEDDED_MODEL / "tokenizer_config.json").read_text(encoding="utf-8"))
    del content["chat_template"]
    (directory / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    (directory.parent / "sums.txt").write_text("12+7=19, and 3+4=7.", encoding="utf-8")
    return directory


def run(model: Path, *arguments: str) -> Result:
    text = str(model.parent / "sums.txt")
    return CliRunner().invoke(evaluate, [str(model), "--text", f"sums={text}", *arguments], catch_exceptions=False)


def test_figures_are_printed_and_written(model: Path, tmp_path: Path) -> None:
    result = run(model, "--reference", str(model), "--json", str(tmp_path / "p.json"), "--html", str(tmp_path / "p.html"))
    assert result.exit_code == 0
    assert "loss sums" in result.stdout
    assert result.stdout.rstrip().endswith("No budgets were set")
    found: dict[str, Any] = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert found["loss"]["sums"]["reference"] > 0
    assert (found["quantized"]["quant"], found["reference"]["quant"], found["quick"]) == ("w8a8", "none", False)
    assert len(found["layers"]) == 15
    assert "<title>Quality of tiny</title>" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_over_budget_is_status_three_after_everything_was_written(model: Path, tmp_path: Path) -> None:
    with pytest.raises(QualityGateError, match="over its budget: the mean KL divergence is") as caught:
        run(model, "--reference", str(model), "--quick", "--max-kl", "1e-9", "--json", str(tmp_path / "p.json"))
    assert caught.value.exit_code == 3
    found = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert (found["quick"], found["gate"]["passed"], found["layers"]) == (True, False, [])


def test_without_a_reference_the_model_is_measured_by_itself(model: Path, tmp_path: Path) -> None:
    result = run(model, "--quick", "--json", str(tmp_path / "p.json"))
    assert result.exit_code == 0
    found = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert found["reference"] is found["kl"] is None
    assert found["loss"]["sums"]["quantized"] > 0


def test_budgets_without_a_reference_are_refused(model: Path) -> None:
    result = run(model, "--max-kl", "0.1")
    assert result.exit_code == 2
    assert "name one with --reference" in result.output


def test_what_cannot_be_used_is_said_before_anything_runs(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its directory does not exist"):
        run(model, "--json", str(tmp_path / "absent" / "p.json"))
    with pytest.raises(CheckpointNotFound):
        run(tmp_path / "absent" / "model")
    with pytest.raises(CalibrationError, match="no such file"):
        run(model, "--text", f"more={tmp_path / 'absent.txt'}")
    with pytest.raises(ConfigError, match="no scratch directory can be made"):
        run(model, "--reference", str(model), "--scratch", str(tmp_path / "absent"))


def test_no_scratch_is_left_behind(model: Path, tmp_path: Path) -> None:
    run(model, "--reference", str(model), "--quick", "--scratch", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
