"""Logits and greedy answers against Hugging Face transformers' (tests/golden/hf, see the README there)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.parity import all_logits, greedy, make_runner
from paddle_ds.layers import MappedEmbedding
from paddle_ds.runtime import loader

CASES = sorted(path.name for path in (Path(__file__).parents[1] / "golden" / "hf").iterdir())


@pytest.mark.floor
@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_ids_match_transformers(case: str, golden_dir: Path) -> None:
    directory = golden_dir / "hf" / case
    golden = np.load(directory / "golden.npz")
    runner = make_runner(directory)
    ids = golden["prompt_ids"].tolist()
    logits = all_logits(runner, ids)
    assert np.abs(logits - golden["logits"]).max() <= 1e-4 * np.abs(golden["logits"]).max()
    expected = golden["greedy_ids"].tolist()
    assert greedy(runner, [ids], len(expected)) == [expected]


@pytest.mark.parametrize("chunk_tokens", [1, 3, 16, 17])
def test_chunked_prefill_gives_the_same_logits(chunk_tokens: int, golden_dir: Path) -> None:
    runner = make_runner(golden_dir / "hf" / "qwen2-gqa-tied")
    ids = np.load(golden_dir / "hf" / "qwen2-gqa-tied" / "golden.npz")["prompt_ids"].tolist()
    whole = all_logits(runner, ids)
    assert np.abs(all_logits(runner, ids, chunk_tokens) - whole).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("quant", ["w8a8", "w8a16"])
def test_quantised_on_load_stays_close_to_float(quant: str, golden_dir: Path) -> None:
    directory = golden_dir / "hf" / "llama-gqa-untied"
    golden = np.load(directory / "golden.npz")
    logits = all_logits(make_runner(directory, quant), golden["prompt_ids"].tolist())  # type: ignore[arg-type]
    correlation = np.corrcoef(logits.ravel(), golden["logits"].ravel())[0, 1]
    assert correlation > 0.99
    assert not np.array_equal(logits, golden["logits"])  # it really was quantised


def test_batched_answers_equal_those_alone(golden_dir: Path) -> None:
    directory = golden_dir / "hf" / "qwen2-untied"
    runner = make_runner(directory, "w8a8")
    ids = np.load(directory / "golden.npz")["prompt_ids"].tolist()
    prompts = [ids[: 3 + 5 * index] for index in range(8)]
    alone = [greedy(runner, [prompt], 12)[0] for prompt in prompts]
    assert greedy(runner, prompts, 12) == alone
    assert greedy(runner, prompts, 12, max_batch_tokens=8) == alone


@pytest.mark.parametrize("case", ["qwen2-bf16-sharded", "llama-fp16", "qwen2-untied"])
def test_embedding_left_in_its_file_gives_the_same_bits(case: str, golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = golden_dir / "hf" / case
    ids = np.load(directory / "golden.npz")["prompt_ids"].tolist()
    in_memory = all_logits(make_runner(directory), ids)
    monkeypatch.setattr(loader, "_MAPPED_FROM_BYTES", 0)
    runner = make_runner(directory)
    assert isinstance(runner.decoder.embedding, MappedEmbedding)
    assert np.array_equal(all_logits(runner, ids), in_memory)
