"""Which of file, environment and options wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from paddle_ds import settings
from paddle_ds.cli.options import engine_config, engine_options
from paddle_ds.cli.sampling import sampling_options, sampling_params
from paddle_ds.config.engine import EngineConfig
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import ConfigError, InvalidRequest

FILE = """
model: from-file
served_name: file-name
quant: w8a16
num_threads: 2
max_context_tokens: 100
cache: {block_tokens: 8, max_tokens: 640}
scheduler: {max_running_requests: 3, max_batch_tokens: 32}
"""


@click.command()
@engine_options
@click.pass_context
def show(context: click.Context, **options: Any) -> None:
    context.obj.append(options)


@click.command()
@sampling_options
@click.pass_context
def show_sampling(context: click.Context, **options: Any) -> None:
    context.obj.append(options)


def parse(command: click.Command, *arguments: str) -> dict[str, Any]:
    kept: list[dict[str, Any]] = []
    result = CliRunner().invoke(command, list(arguments), obj=kept, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return kept[0]


def config_of(*arguments: str, **environ: str) -> EngineConfig:
    return engine_config(settings.load({f"PADDLE_DS_{key}": value for key, value in environ.items()}), **parse(show, *arguments))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "engine.yaml"
    path.write_text(FILE, encoding="utf-8")
    return str(path)


def test_without_anything_the_defaults_hold() -> None:
    assert config_of() == EngineConfig()


def test_the_file_is_taken_whole(file: str) -> None:
    assert config_of("--config", file) == EngineConfig.from_yaml(Path(file))


def test_the_environment_wins_over_the_file(file: str) -> None:
    config = config_of("--config", file, NUM_THREADS="7", STRICT="1")
    assert (config.num_threads, config.strict, config.max_context_tokens) == (7, True, 100)


def test_options_win_over_file_and_environment(file: str) -> None:
    config = config_of("--config", file, "--num-threads", "5", "--quant", "none", "--model", "m", NUM_THREADS="7")
    assert (config.num_threads, config.quant, config.model, config.served_name) == (5, "none", "m", "file-name")


def test_options_of_parts_leave_the_rest_of_the_part_alone(file: str) -> None:
    config = config_of("--config", file, "--kv-tokens", "64", "--max-running-requests", "9")
    assert (config.cache.max_tokens, config.cache.block_tokens) == (64, 8)
    assert (config.scheduler.max_running_requests, config.scheduler.max_batch_tokens) == (9, 32)


def test_strict_may_come_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text("strict: true\n", encoding="utf-8")
    assert config_of("--strict").strict
    assert config_of(STRICT="1").strict
    assert config_of("--config", str(tmp_path / "strict.yaml"), STRICT="0").strict


def test_every_option_reaches_the_configuration() -> None:
    arguments = (
        "--model m --served-name n --quant w8a8 --device cpu --max-context-tokens 9 --kv-tokens 8 --max-running-requests 7 "
        "--max-batch-tokens 70 --num-threads 6 --strict"
    )
    config = config_of(*arguments.split())
    assert (config.model, config.served_name, config.quant, config.device, config.strict) == ("m", "n", "w8a8", "cpu", True)
    assert (config.max_context_tokens, config.cache.max_tokens, config.num_threads) == (9, 8, 6)
    assert (config.scheduler.max_running_requests, config.scheduler.max_batch_tokens) == (7, 70)


@pytest.mark.parametrize("arguments", [["--quant", "int4"], ["--num-threads", "0"], ["--kv-tokens", "-1"], ["--nope"]])
def test_a_wrong_option_is_a_usage_error(arguments: list[str]) -> None:
    assert CliRunner().invoke(show, arguments, obj=[]).exit_code == 2


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_batch_tokens is 10, fewer than max_running_requests, 64"):
        config_of("--max-batch-tokens", "10")


def test_sampling_options_make_parameters() -> None:
    given = "--max-tokens 5 --temperature 0.5 --top-p 0.9 --top-k 3 --seed 1 --stop a --stop b --n 2"
    options = {"other": 1, **parse(show_sampling, *given.split())}
    assert sampling_params(options) == SamplingParams(
        max_tokens=5, temperature=0.5, top_p=0.9, top_k=3, seed=1, stop=("a", "b"), n=2
    )
    assert options == {"other": 1}


def test_sampling_on_the_command_line_is_greedy_by_default() -> None:
    assert sampling_params(parse(show_sampling)) == SamplingParams(temperature=0.0)


def test_a_sampling_value_out_of_range_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"temperature is 9\.0"):
        sampling_params(parse(show_sampling, "--temperature", "9"))
