"""``paddle-ds inspect``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from paddle_ds.cli.inspect import inspect
from paddle_ds.errors import CheckpointNotFound, ConfigError


def run(*arguments: str) -> Result:
    return CliRunner().invoke(inspect, list(arguments), catch_exceptions=False)


def report(*arguments: str) -> dict[str, Any]:
    result = run("--json", *arguments)
    assert result.exit_code == 0
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def test_without_a_path_the_embedded_model_is_shown() -> None:
    shown = report()
    assert shown["directory"].endswith("assets/tiny-r1")
    assert (shown["format"], shown["model"]["architecture"]) == ("compressed-tensors", "Qwen2ForCausalLM")
    assert shown["quant"] == {"requested": "auto", "runs": "w8a8", "left_unquantised": []}
    assert "int8" in shown["stored"]


def test_the_memory_plan_is_part_of_the_report(golden_dir: Path) -> None:
    memory = report(str(golden_dir / "hf" / "llama-tied"), "--kv-tokens", "40")["memory"]
    assert memory["fits"] is True
    assert (memory["num_blocks"], memory["kv_tokens"]) == (3, 48)
    assert memory["total_bytes"] > sum(memory["weight_bytes"].values())


def test_tensors_are_listed_when_asked_for(golden_dir: Path) -> None:
    path = str(golden_dir / "hf" / "llama-tied")
    assert "tensors" not in report(path)
    tensors = report(path, "--tensors")["tensors"]
    assert tensors[0]["name"] == "model.embed_tokens.weight"
    assert set(tensors[0]) == {"name", "shape", "dtype", "bytes", "file"}


def test_what_does_not_fit_is_said_and_is_no_failure() -> None:
    memory = report("--max-context-tokens", "1000000")["memory"]
    assert memory["fits"] is False
    assert "max_context_tokens is 1000000" in memory["error"]


def test_the_quantisation_asked_for_is_the_one_planned(golden_dir: Path) -> None:
    path = str(golden_dir / "hf" / "llama-tied")
    assert "int8" not in report(path, "--quant", "none")["memory"]["weight_bytes"]
    assert "int8" in report(path, "--quant", "w8a16")["memory"]["weight_bytes"]


@pytest.mark.parametrize("name", ["plain", "[bold]", "[", ":smile:"])
def test_people_get_tables_with_the_path_as_it_is(golden_dir: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(golden_dir / "hf" / "llama-tied", tmp_path / name)
    result = run(str(copy), "--tensors")
    assert result.exit_code == 0
    assert name in result.stdout.replace("\n", "")
    for title in ("model", "stored", "quantisation", "memory plan"):
        assert title in result.stdout


def test_a_path_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no such directory"):
        run(str(tmp_path / "nothing"))


def test_a_configuration_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "engine.yaml").write_text("cache: {max_tokens: 32}\n", encoding="utf-8")
    assert report("--config", str(tmp_path / "engine.yaml"))["memory"]["kv_tokens"] == 32
    (tmp_path / "engine.yaml").write_text("cahce: {}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown key 'cahce'"):
        run("--config", str(tmp_path / "engine.yaml"))
