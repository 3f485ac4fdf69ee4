"""A run of ``convert``: its report and progress, what it does where something goes wrong, and the command."""

from __future__ import annotations

import json
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from checkpoints import makers
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.native import COMPANIONS
from paddle_ds.config.tensors import model_specs
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import CheckpointError, ConfigError
from paddle_ds_slim.convert import REPORT_FILE, ConversionReport, convert
from paddle_ds_slim.convert_command import convert as command
from paddle_ds_slim.exporters import FORMATS
from slim.conversion_sources import model_config, write_simple


@pytest.mark.parametrize("target", FORMATS)
def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path, target: str) -> None:
    source = write_simple(tmp_path / "source")
    foreseen = convert(source, tmp_path / "out", target, dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    done = convert(source, tmp_path / "out", target)
    assert (foreseen.outcomes, foreseen.sentences) == (done.outcomes, done.sentences)
    assert foreseen.bytes_after is None
    assert done.bytes_after is not None
    assert done.bytes_after > 0


def test_errors_and_counts_of_the_report_are_those_of_the_weights(tmp_path: Path) -> None:
    source = write_simple(tmp_path / "source")
    report = convert(source, tmp_path / "out", "native")
    errors: dict[str, float] = {}
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "out") as after:
        for spec in model_specs(before.config):
            was, is_now = before.read(spec).to_float32(), after.read(spec).to_float32()
            errors[spec.name] = float(np.linalg.norm(is_now - was) / np.linalg.norm(was))
        quantised = report.outcomes["quantised"]
        assert quantised.worst == max(errors, key=lambda name: errors[name])
        assert quantised.largest_error == pytest.approx(max(errors.values()), rel=1e-4)
        assert quantised.num_tensors == sum(error > 0 for error in errors.values()) == 15
        assert report.outcomes["exact"].largest_error == 0
        num_weights = sum(spec.num_elements for spec in model_specs(before.config))
        assert sum(summary.num_weights for summary in report.outcomes.values()) == num_weights


@pytest.mark.parametrize("target", FORMATS)
def test_progress_counts_source_bytes_up_to_all(tmp_path: Path, target: str) -> None:
    calls: list[tuple[str, int, int]] = []
    convert(write_simple(tmp_path / "source"), tmp_path / "out", target, progress=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2]
    assert [call[1] for call in calls] == sorted({call[1] for call in calls})


@pytest.mark.parametrize("target", FORMATS)
def test_tokenizer_and_generation_files_travel_along(tmp_path: Path, target: str) -> None:
    convert(EMBEDDED_MODEL, tmp_path / "out", target)
    for name in COMPANIONS:
        if (EMBEDDED_MODEL / name).is_file():
            assert (tmp_path / "out" / name).read_bytes() == (EMBEDDED_MODEL / name).read_bytes()
    assert (tmp_path / "out" / "manifest.json").exists() is (target == "native")


@pytest.mark.parametrize("target", FORMATS)
def test_two_runs_write_the_same_bytes(tmp_path: Path, target: str) -> None:
    source = write_simple(tmp_path / "source")
    for name in ("first", "second"):
        convert(source, tmp_path / name, target)
    for file in (tmp_path / "first").iterdir():
        if file.name != REPORT_FILE:
            assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


@pytest.mark.parametrize("target", FORMATS)
def test_ctrl_c_leaves_nothing(tmp_path: Path, target: str) -> None:
    def interrupt(name: str, done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes / 2:
            raise KeyboardInterrupt

    source = write_simple(tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", target, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """The system refuses files of more than 60 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("target", FORMATS)
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path, target: str, request: pytest.FixtureRequest) -> None:
    source = write_simple(tmp_path / "source")
    request.getfixturevalue("small_disk")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(source, tmp_path / "out", target)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_occupied_destination_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(CheckpointError, match="already there"):
        convert(tmp_path / "absent", tmp_path / "out", "native")
    assert (tmp_path / "out" / "mine").read_text() == "precious"


@pytest.mark.parametrize("target", FORMATS)
def test_memory_stays_at_a_few_tensors(tmp_path: Path, target: str) -> None:
    config = model_config("llama-untied", hidden_size=128, intermediate_size=1024, num_hidden_layers=12)
    makers.write_hf(tmp_path / "source", config, makers.random_tensors(config))
    tracemalloc.start()
    convert(tmp_path / "source", tmp_path / "out", target)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest_bytes = 4 * 128 * 1024
    assert peak_bytes < 12 * largest_bytes < (tmp_path / "source" / "model.safetensors").stat().st_size / 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"to": "onnx"}, "--to 'onnx'; have: native, float"),
        ({"to": "gguf-q8_0", "dtype": "float16"}, "--dtype float16 with --to gguf-q8_0"),
        ({"to": "paddlenlp-int8", "dtype": "float32"}, "paddlenlp-int8: float16, bfloat16"),
        ({"to": "float", "keep_groups": True}, "--keep-groups is for --to native"),
    ],
)
def test_options_that_a_format_does_not_have_are_refused(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        convert(tmp_path, tmp_path / "out", **options)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_and_sentences(tmp_path: Path) -> None:
    source = write_simple(tmp_path / "source")
    result = run(source, tmp_path / "out", "--to", "gguf-q8_0")
    assert result.exit_code == 0, result.output
    assert "quantised" in result.output
    assert "floating point rounded to integers" in result.output
    assert (tmp_path / "out" / "model-q8_0.gguf").is_file()


def test_the_command_prints_json_and_needs_no_destination_for_a_dry_run(tmp_path: Path) -> None:
    source = write_simple(tmp_path / "source")
    result = run(source, "--to", "native", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["version"], report["to"], report["out"], report["is_exact"]) == (1, "native", None, False)
    assert report["outcomes"]["quantised"]["num_tensors"] == 15
    assert run(source, "--to", "native").exit_code == 2


def test_the_report_holds_nothing_but_what_its_fields_say(tmp_path: Path) -> None:
    report = convert(write_simple(tmp_path / "source"), tmp_path / "out", "float")
    assert isinstance(report, ConversionReport)
    assert set(report.as_json()) == {
        *("version", "paddle_ds", "is_exact", "source", "source_format", "to", "out"),
        *("outcomes", "sentences", "bytes_before", "bytes_after"),
    }
    assert report.source_format == "huggingface"
