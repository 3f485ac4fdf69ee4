"""The same model in every layout we read gives the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import makers
from engine.parity import all_logits, make_runner
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.native import write_native

IDS = [1, 5, 9, 20, 33, 2, 55, 17, 8]
TIED = {"tie_word_embeddings": True}

Write = Callable[[Path, dict[str, Any], makers.Tensors], Path]


def nlp(container: str, **options: Any) -> Write:
    """A PaddleNLP directory; ``is_int8`` also says so in ``config.json``."""

    def write(path: Path, config: dict[str, Any], tensors: makers.Tensors) -> Path:
        is_int8 = options.get("is_int8", False)
        changed = {**config, "quantization_config": {"weight_quantize_algo": "llm.int8"}} if is_int8 else config
        shards = options.get("num_shards", 1)
        stored = makers.paddlenlp_tensors(config, tensors, is_int8=is_int8)
        return makers.write_paddlenlp(path, changed, stored, container, shards)

    return write


def compressed(path: Path, config: dict[str, Any], tensors: makers.Tensors) -> Path:
    """compressed-tensors W8A8."""
    changed = {**config, "quantization_config": makers.w8a8_scheme()}
    return makers.write_hf(path, changed, makers.compressed_tensors(tensors))


def native(path: Path, config: dict[str, Any], tensors: makers.Tensors) -> Path:
    """What this project writes."""
    source = makers.write_hf(path.parent / "source", config, tensors)
    with open_checkpoint(source) as checkpoint:
        write_native(checkpoint, path)
    return path


FLOAT_KINDS: dict[str, Write] = {
    "hf-sharded": lambda path, config, tensors: makers.write_hf(path, config, tensors, num_shards=3),
    "paddlenlp-pdparams": nlp("pdparams"),
    "paddlenlp-pdparams-sharded": nlp("pdparams", num_shards=2),
    "paddlenlp-safetensors": nlp("safetensors"),
    "paddlenlp-safetensors-sharded": nlp("safetensors", num_shards=2),
}
INT8_KINDS: dict[str, Write] = {
    "compressed-tensors": compressed,
    "paddlenlp-int8-pdparams": nlp("pdparams", is_int8=True),
    "paddlenlp-int8-safetensors": nlp("safetensors", is_int8=True),
    "native": native,
}


def make(tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], makers.Tensors, Path]:
    config = makers.config_json(**changes)
    tensors = makers.random_tensors(config)
    return config, tensors, makers.write_hf(tmp_path / "plain", config, tensors)


@pytest.mark.parametrize("changes", [{}, TIED, makers.LLAMA], ids=["qwen2", "tied", "llama"])
@pytest.mark.parametrize("kind", FLOAT_KINDS)
def test_float_layouts_give_the_logits_of_the_plain_one(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config, tensors, plain = make(tmp_path, **changes)
    other = FLOAT_KINDS[kind](tmp_path / "other", config, tensors)
    assert np.array_equal(all_logits(make_runner(other), IDS), all_logits(make_runner(plain), IDS))


@pytest.mark.parametrize("kind", INT8_KINDS)
def test_int8_layouts_give_the_logits_of_int8_on_load(kind: str, tmp_path: Path) -> None:
    config, tensors, plain = make(tmp_path)
    other = INT8_KINDS[kind](tmp_path / "other", config, tensors)
    stored, on_load = all_logits(make_runner(other, "auto"), IDS), all_logits(make_runner(plain, "w8a8"), IDS)
    # layouts that leave the head alone differ from INT8-on-load by the head's rounding, no more
    tolerance = 0 if kind == "native" else 0.02
    assert np.abs(stored - on_load).max() <= tolerance * np.abs(on_load).max()


def test_int8_layouts_of_the_same_integers_agree_to_the_bit(tmp_path: Path) -> None:
    config, tensors, _ = make(tmp_path)
    kinds = ("compressed-tensors", "paddlenlp-int8-pdparams", "paddlenlp-int8-safetensors")
    logits = [all_logits(make_runner(INT8_KINDS[kind](tmp_path / kind, config, tensors), "auto"), IDS) for kind in kinds]
    assert all(np.array_equal(logits[0], other) for other in logits[1:])
