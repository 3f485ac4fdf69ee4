"""A checkpoint says what cache it was made for, and gets it unless another one is asked for."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import pytest
from click.testing import CliRunner

from checkpoints import makers
from engine.parity import all_logits
from kernels.grid import BLOCK_TOKENS, Ragged
from paddle_ds import LLM, SamplingParams
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.native import write_native
from paddle_ds.cli.inspect import inspect
from paddle_ds.config.engine import CacheConfig, EngineConfig, KvDtype
from paddle_ds.engine.announcer import model_info
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.kernels import native
from paddle_ds.layers import RotaryTable

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

Array = npt.NDArray[np.float32]
QUESTIONS = ["12+7", "81-46", "3+4", "23 plus 45?"]
GREEDY = SamplingParams(temperature=0)
SCHEME = {"num_bits": 8, "type": "int", "symmetric": True}
DYNAMIC = {**SCHEME, "dynamic": True, "strategy": "token"}
STATIC = {**SCHEME, "dynamic": False, "strategy": "attn_head"}


def with_scheme(directory: Path, scheme: dict[str, Any], scales: makers.Tensors) -> Path:
    """The embedded model with a ``kv_cache_scheme``, and its scales in a file of their own."""
    shutil.copytree(EMBEDDED_MODEL, directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["kv_cache_scheme"] = scheme
    makers.write_json(directory / "config.json", config)
    if scales:
        first, second = (directory / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
        data = (directory / "model.safetensors").rename(first).read_bytes()
        names = [name for name in json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) if name != "__metadata__"]
        second.write_bytes(makers.safetensors_bytes(scales))
        weight_map = dict.fromkeys(names, first.name) | dict.fromkeys(scales, second.name)
        makers.write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})
    return directory


def load(directory: Path, dtype: KvDtype | None = None) -> LLM:
    cache = CacheConfig(max_tokens=64 * BLOCK_TOKENS) if dtype is None else CacheConfig(dtype=dtype, max_tokens=64 * BLOCK_TOKENS)
    return LLM(config=EngineConfig(model=str(directory), num_threads=1, cache=cache))


def answers(llm: LLM) -> list[str]:
    return [output.text for output in llm.chat([[{"role": "user", "content": question}] for question in QUESTIONS], GREEDY)]


def peaks(llm: LLM, ids: list[int]) -> tuple[Array, Array]:
    """Static scales that hold all keys and values of the text, float32 [layers, kv_heads] each: the largest dynamic ones."""
    decoder = llm.loaded.runner.decoder
    batch = Ragged([(len(ids), len(ids))])
    angles = RotaryTable(decoder.config).cos_sin(np.arange(len(ids)))
    cos, sin = (paddle.to_tensor(each) for each in angles)
    cache = decoder.make_cache(batch.num_blocks, BLOCK_TOKENS, "int8")
    decoder.hidden(paddle.to_tensor(ids), cache, dataclasses.replace(batch.layout(1), cos=cos, sin=sin))
    block, offset = batch.slots(0) // BLOCK_TOKENS, batch.slots(0) % BLOCK_TOKENS
    key, value = (np.asarray(scales)[:, block, :, offset].max(axis=0) for scales in (cache.key_scales, cache.value_scales))
    return key, value


@dataclasses.dataclass(frozen=True)
class Made:
    """Checkpoints that differ in their cache alone, and a text."""

    plain: Path
    dynamic: Path
    static: Path
    ids: list[int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("kv")
    llm = load(EMBEDDED_MODEL, "float32")
    text = "<think>\n81 - 46 = 35\n</think>\n\n12 + 7 = 19, 23加45等于68。 What is 3 times 6? 18."
    ids = [*llm.loaded.tokenizer.encode(text)]
    scales: makers.Tensors = {}
    for layer, (key, value) in enumerate(zip(*peaks(llm, ids), strict=True)):
        scales[f"model.layers.{layer}.self_attn.k_scale"] = key.reshape(-1, 1, 1)
        scales[f"model.layers.{layer}.self_attn.v_scale"] = value.reshape(-1, 1, 1)
    static = with_scheme(directory / "static", STATIC, scales)
    return Made(EMBEDDED_MODEL, with_scheme(directory / "dynamic", DYNAMIC, {}), static, ids)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[dict[str, dict[str, Any]]]:
    """Event -> fields of its last line."""
    seen: dict[str, dict[str, Any]] = {}

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen[record.getMessage()] = vars(record).get("paddle_ds_fields", {})

    logger, keep = logging.getLogger("paddle_ds"), Keep()
    with caplog.at_level(logging.INFO, "paddle_ds"):
        logger.addHandler(keep)
        yield seen
        logger.removeHandler(keep)


@pytest.mark.parametrize("scales", ["dynamic", "static"])
def test_the_checkpoints_cache_runs_and_answers_as_the_exact_one(made: Made, scales: str) -> None:
    llm, exact = load(getattr(made, scales)), load(made.plain, "float32")
    assert (llm.loaded.plan.kv_dtype, llm.loaded.plan.kv_scales) == ("int8", scales)
    assert (model_info(llm.loaded).kv_dtype, model_info(llm.loaded).kv_scales) == ("int8", scales)
    ours, theirs = (all_logits(model.loaded.runner, made.ids) for model in (llm, exact))
    assert 0 < np.abs(ours - theirs).max() <= 0.1 * np.abs(theirs).max()
    assert np.abs(ours - theirs).mean() <= 0.01 * np.abs(theirs).max()
    assert answers(llm) == answers(exact)


def test_the_log_has_dtype_and_scales(made: Made, log: dict[str, dict[str, Any]]) -> None:
    load(made.static)
    assert (log["memory.plan"]["kv_dtype"], log["memory.plan"]["kv_scales"]) == ("int8", "static")
    load(made.dynamic)
    assert log["memory.plan"]["kv_scales"] == "dynamic"
    assert "kv_dtype.overridden" not in log
    load(made.plain)
    assert "kv_scales" not in log["memory.plan"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_dtype_that_is_asked_for_wins_and_that_is_said(
    made: Made, dtype: KvDtype, log: dict[str, dict[str, Any]]
) -> None:
    llm, plain = load(made.static, dtype), load(made.plain, dtype)
    assert log["kv_dtype.overridden"] == {"checkpoint": "int8", "runs": dtype, "because": "cache.dtype asks for it"}
    assert (llm.loaded.plan.kv_dtype, llm.loaded.plan.kv_scales) == (dtype, None)
    ours, theirs = (all_logits(model.loaded.runner, made.ids) for model in (llm, plain))
    assert np.array_equal(ours, theirs)


def test_int8_that_is_asked_for_has_the_scales_of_the_checkpoint(made: Made, log: dict[str, dict[str, Any]]) -> None:
    asked_for, auto, dynamic = load(made.static, "int8"), load(made.static), load(made.plain, "int8")
    logits, same, other = (all_logits(model.loaded.runner, made.ids) for model in (asked_for, auto, dynamic))
    assert np.array_equal(logits, same)
    assert not np.array_equal(logits, other)
    assert np.array_equal(other, all_logits(load(made.dynamic).loaded.runner, made.ids))
    assert "kv_dtype.overridden" not in log


@pytest.mark.parametrize("scales", ["dynamic", "static"])
def test_a_copy_by_the_native_writer_gives_the_same_logits(made: Made, scales: str, tmp_path: Path) -> None:
    source = getattr(made, scales)
    with open_checkpoint(source) as checkpoint:
        write_native(checkpoint, tmp_path / "copy")
    ours, theirs = (load(path) for path in (tmp_path / "copy", source))
    assert ours.loaded.plan.kv_scales == scales
    assert np.array_equal(*(all_logits(model.loaded.runner, made.ids) for model in (ours, theirs)))


def test_one_scale_for_all_heads_of_a_layer(made: Made, tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.self_attn.{kind}_scale" for layer in range(4) for kind in "kv"]
    one = {name: np.array([1 / 32], np.float32) for name in names}
    heads = {name: np.full((2, 1, 1), 1 / 32, np.float32) for name in names}
    shared = load(with_scheme(tmp_path / "one", {**STATIC, "strategy": "tensor"}, one))
    each = load(with_scheme(tmp_path / "heads", STATIC, heads))
    assert np.array_equal(*(all_logits(model.loaded.runner, made.ids) for model in (shared, each)))


def test_inspect_shows_what_will_run(made: Made) -> None:
    def memory(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(inspect, [str(made.static), "--json", *arguments], catch_exceptions=False)
        shown: dict[str, Any] = json.loads(result.stdout)["memory"]
        return shown

    auto, exact = memory("--kv-tokens", "64"), memory("--kv-tokens", "64", "--kv-dtype", "float32")
    assert (auto["kv_dtype"], auto["kv_scales"], auto["checkpoint_kv_dtype"]) == ("int8", "static", "int8")
    assert (exact["kv_dtype"], exact["kv_scales"], exact["checkpoint_kv_dtype"]) == ("float32", None, "int8")
    assert auto["kv_bytes"] < exact["kv_bytes"]
