"""``paddle-ds doctor --model``: is the checkpoint here, is it whole, does it fit, and what would make it fit?"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from paddle_ds.checkpoints.base import Checkpoint, StoredTensor
from paddle_ds.cli.checks import Context, Finding, Questions, fit, model
from paddle_ds.cli.doctor import parsed
from paddle_ds.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from paddle_ds.config.memory import MemoryConfig
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import TensorSpec, model_specs
from paddle_ds.devices.base import MemoryStats
from paddle_ds.engine.assets import EMBEDDED_MODEL

GB = 10**9


def look(**asked: object) -> list[Finding]:
    return list(model.check(Context(Questions(**asked), installed={})))  # type: ignore[arg-type]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))


def test_a_whole_checkpoint_that_fits_is_said_in_one_sentence(copy: Path) -> None:
    whole, fits = look(model=str(copy), max_context_tokens=512)
    assert (whole.code, fits.code, fits.level) == ("model", "model_fits", "ok")
    assert f"{copy} (compressed-tensors) is whole (51 tensors)" in whole.text
    sentence = (
        r"this checkpoint in w8a8 with 512 tokens of context needs [\d.]+ MB; cpu has [\d.]+ GB available; its cache will hold"
    )
    assert re.match(sentence, fits.text)


def test_a_file_that_ends_early_is_damage(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (found,) = look(model=str(copy))
    assert (found.code, found.level) == ("model_damaged", "error")
    assert str(weights) in found.text


def test_a_missing_tokenizer_is_damage(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert [finding.code for finding in look(model=str(copy))] == ["model", "model_damaged"]


def test_neither_a_directory_nor_a_name_is_an_error() -> None:
    (found,) = look(model="/nowhere/at/all")
    assert (found.code, "no such directory or file" in found.text) == ("model_damaged", True)


def test_no_hub_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path))
    (found,) = look(model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    assert (found.code, found.level) == ("model_not_here", "warning")
    assert "which was not tried" in found.text


def test_a_fetched_model_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copy: Path) -> None:
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "cache"))
    receipt = tmp_path / "cache" / "hub" / "bos" / "org--name.complete.json"
    receipt.parent.mkdir(parents=True)
    receipt.write_text(json.dumps({"directory": str(copy), "files": ["config.json"]}), encoding="utf-8")
    assert [finding.code for finding in look(model="org/name")] == ["model", "model_fits"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"config": "/nowhere.yaml"}, "/nowhere.yaml: cannot be read"),
        ({"max_running_requests": 600}, "scheduler.max_batch_tokens is 512, fewer than max_running_requests"),
        ({"max_context_tokens": 10**6}, "max_context_tokens is 1000000, but the model was made for 1024"),
        ({"max_context_tokens": 1024, "kv_tokens": 512}, "but the KV cache holds 512 tokens"),
    ],
    ids=str,
)
def test_a_contradiction_in_the_configuration_is_an_error(asked: dict[str, object], said: str) -> None:
    found = look(**asked)[-1]
    assert (found.code, found.level, said in found.text) == ("config_wrong", "error", True)


def test_a_cache_larger_than_the_machine_does_not_fit() -> None:
    found = look(kv_tokens=10**9)[-1]
    assert (found.code, found.level) == ("model_too_large", "error")
    assert found.fix


class Unread(Checkpoint):
    """A checkpoint of which there is only the inventory: bfloat16, of the shape of R1-Distill-Qwen-1.5B with a tied head."""

    format = "huggingface"
    directory = Path("nowhere")
    config = ModelConfig(
        architecture="Qwen2ForCausalLM",
        hidden_size=1536,
        intermediate_size=8960,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        stored_dtype="bfloat16",
    )

    def stored(self) -> Mapping[str, StoredTensor]:
        rows = model_specs(self.config)
        return {row.name: StoredTensor(row.name, row.shape, "bfloat16", 2 * row.num_elements, self.directory) for row in rows}

    def schemes(self) -> Mapping[str, Scheme]:
        return {}

    def ignored(self) -> frozenset[str]:
        return frozenset()

    def read(self, spec: TensorSpec) -> NoReturn:
        raise AssertionError("a plan needs no values")

    def release(self, spec: TensorSpec) -> None:
        """Nothing was read."""

    def close(self) -> None:
        """Nothing is open."""


def fitted(config: EngineConfig, available_bytes: int) -> Finding:
    (found,) = fit.check(Unread(), config, MemoryStats(64 << 30, available_bytes))
    return found


def needed_bytes(config: EngineConfig) -> int:
    """Found out by trying: the least memory in which it fits."""
    low, high = 0, 64 << 30
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fitted(config, middle).code == "model_fits" else (middle, high)
    return high


ASKED = EngineConfig(max_context_tokens=32768)
LONG = EngineConfig(max_context_tokens=131072)
WIDE = EngineConfig(quant="none", max_context_tokens=32768, cache=CacheConfig(dtype="float32"))


def test_the_figure_it_names_is_what_it_needs() -> None:
    said = fitted(ASKED, 20 * GB).text
    assert said.startswith(
        "this checkpoint in w8a8 with 32,768 tokens of context needs 3.9 GB; cpu has 20.0 GB available; its cache"
    )
    assert round(needed_bytes(ASKED) / GB, 1) == 3.9


def test_what_the_configuration_leaves_to_others_is_not_counted() -> None:
    config = dataclasses.replace(ASKED, memory=MemoryConfig(reserve_bytes=GB))
    found = fitted(config, needed_bytes(ASKED) + GB - 1)
    assert (found.code, "GB available, of which 3.9 GB may be used" in found.text) == ("model_too_large", True)
    assert fitted(config, needed_bytes(ASKED) + GB).code == "model_fits"


def test_a_byte_less_does_not_fit() -> None:
    found = fitted(ASKED, needed_bytes(ASKED) - 1)
    assert (found.code, found.level) == ("model_too_large", "error")


def test_a_context_that_only_half_of_the_memory_would_hold_can_be_asked_for() -> None:
    found = fitted(EngineConfig(), needed_bytes(LONG))
    assert (found.code, found.level) == ("context_shortened", "warning")
    assert re.search(r"A server will hold requests to [\d,]+ tokens$", found.text)
    assert found.fix == "ask for it: --max-context-tokens 131072 lets the cache take more than half of the free memory"


@pytest.mark.parametrize(
    ("config", "missing_bytes", "fix"),
    [
        (WIDE, 1, "--quant w8a8 --max-context-tokens 32768 (needs "),
        (WIDE, GB, "--quant w8a8 --max-context-tokens 32768 (needs "),
        (ASKED, 1, "--max-running-requests 4 --max-batch-tokens 128 --max-context-tokens 32768 (needs "),
        (
            dataclasses.replace(ASKED, scheduler=SchedulerConfig(4, 2048, 128)),
            1,
            "--kv-dtype int8 --max-context-tokens 32768 (needs ",
        ),
        (LONG, 3 * GB, "--max-running-requests 4 --max-batch-tokens 128 --kv-dtype int8 --max-context-tokens "),
    ],
    ids=["quant", "quant-much", "limits", "cache", "context"],
)
def test_what_is_said_to_make_it_fit_does(config: EngineConfig, missing_bytes: int, fix: str) -> None:
    available = needed_bytes(config) - missing_bytes
    found = fitted(config, available)
    assert (found.code, found.level, found.fix.startswith(fix)) == ("model_too_large", "error", True)
    given = {name: value for name, value in parsed(shlex.split(found.fix.partition(" (")[0])).items() if value}
    before = {"quant": config.quant, "kv_dtype": config.cache.dtype, **dataclasses.asdict(config.scheduler)}
    asked = {name: value for name, value in before.items() if name in Questions.__dataclass_fields__}
    assert fitted(Context(Questions(**{**asked, **given}), installed={}).engine_config(), available).code == "model_fits"


def test_where_the_memory_is_too_small_for_anything_no_option_is_named() -> None:
    found = fitted(ASKED, GB)
    assert (found.code, found.fix.startswith("no setting makes it fit: at the smallest it needs ")) == ("model_too_large", True)


def test_a_limit_of_the_file_is_not_called_a_want_of_memory() -> None:
    found = fitted(dataclasses.replace(ASKED, cache=CacheConfig(max_bytes=1 << 20)), 20 * GB)
    assert (found.code, "but the KV cache holds" in found.text) == ("model_too_large", True)
    assert found.fix.startswith("ask for it: --max-context-tokens 32768")
