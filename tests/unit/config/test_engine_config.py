"""``EngineConfig`` from YAML and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddle_ds.config.engine import CacheConfig, EngineConfig, SchedulerConfig, from_mapping
from paddle_ds.errors import ConfigError

ROOT = Path(__file__).parents[3]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "engine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n", "cache: {}\nscheduler: {}\n"])
def test_an_empty_file_is_the_default(tmp_path: Path, text: str) -> None:
    assert EngineConfig.from_yaml(write(tmp_path, text)) == EngineConfig()


def test_keys_are_fields_nested_ones_too(tmp_path: Path) -> None:
    path = write(
        tmp_path, "model: m\nquant: w8a16\ncache:\n  block_tokens: 8\nscheduler: {max_running_requests: 4}\nstrict: true\n"
    )
    assert EngineConfig.from_yaml(path) == EngineConfig(
        model="m",
        quant="w8a16",
        strict=True,
        cache=CacheConfig(block_tokens=8),
        scheduler=SchedulerConfig(max_running_requests=4),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_seq: 5", r"unknown key 'max_seq'; known: model, served_name, quant, device, "),
        ("cache: {size: 5}", r"engine.yaml: cache: unknown key 'size'; known: block_tokens, max_tokens, max_bytes, dtype$"),
        ("7: 5", "unknown key 7"),
        ("strict: 1", r"strict: 1 is wrong; expected bool"),
        ("num_threads: true", r"num_threads: True is wrong; expected int or nothing"),
        ("num_threads: '4'", r"num_threads: '4' is wrong"),
        ("num_threads: 2.0", r"num_threads: 2.0 is wrong"),
        ("model: null", r"model: None is wrong; expected str"),
        ("quant: int4", r"quant: 'int4' is wrong; expected one of auto, w8a8, w8a16, none"),
        ("quant: [auto]", r"quant: \['auto'\] is wrong"),
        ("cache: null", r"cache: expected a mapping, found NoneType"),
        ("cache: {max_tokens: x}", r"engine.yaml: cache: max_tokens: 'x' is wrong; expected int or nothing"),
        ("- model", "expected a mapping, found list"),
        ("false", "expected a mapping, found bool"),
        ("model: [", "cannot be read as YAML"),
        ("model: 2024-99-99", "cannot be read as YAML"),
        ("[" * 5_000, "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig.from_yaml(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        EngineConfig.from_yaml(tmp_path / "none.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "engine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        EngineConfig.from_yaml(path)


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(),
        EngineConfig(model="/m", quant="none", max_context_tokens=9, num_threads=3, cache=CacheConfig(1, 2, 3)),
        EngineConfig(served_name="名", strict=True, scheduler=SchedulerConfig(1, 2, 3)),
    ],
    ids=["default", "cache", "scheduler"],
)
def test_plain_data_reads_back_equal(config: EngineConfig) -> None:
    assert from_mapping(EngineConfig, config.to_dict(), "here") == config


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "4"])
@pytest.mark.parametrize("name", ["max_context_tokens", "num_threads"])
def test_numbers_are_whole_and_at_least_one(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; expected a whole number of at least 1"):
        EngineConfig(**{name: value})


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"cache": CacheConfig(block_tokens=0)}, "cache.block_tokens"),
        ({"cache": CacheConfig(max_tokens=0)}, "cache.max_tokens"),
        ({"cache": CacheConfig(max_bytes=-1)}, "cache.max_bytes"),
        ({"scheduler": SchedulerConfig(max_running_requests=0)}, "scheduler.max_running_requests"),
        ({"scheduler": SchedulerConfig(max_waiting_requests=0)}, "scheduler.max_waiting_requests"),
        ({"scheduler": SchedulerConfig(max_batch_tokens=0)}, "scheduler.max_batch_tokens"),
    ],
)
def test_nested_numbers_are_named_in_full(config: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is "):
        EngineConfig(**config)


def test_a_step_must_hold_a_token_of_every_running_request() -> None:
    EngineConfig(scheduler=SchedulerConfig(max_running_requests=8, max_batch_tokens=8))
    with pytest.raises(ConfigError, match="max_batch_tokens is 7, fewer than max_running_requests, 8"):
        EngineConfig(scheduler=SchedulerConfig(max_running_requests=8, max_batch_tokens=7))


def test_an_unknown_quantisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="quant is 'int4'; expected one of auto, w8a8, w8a16, none"):
        EngineConfig(quant="int4")  # type: ignore[arg-type]


def test_the_configurations_we_ship_parse() -> None:
    for path in sorted((ROOT / "configs" / "engine").glob("*.y*ml")):
        EngineConfig.from_yaml(path)
