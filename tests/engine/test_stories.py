"""A small model that was really trained: greedy ids and losses as published with the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_ds import LLM, SamplingParams
from paddle_ds.runtime.evaluate import mean_loss

BOS = 1


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    return shared_data / "stories260k"


def loss_of(path: Path, stories: Path, quant: str) -> float:
    """Mean loss over the sample's stories, each from BOS."""
    llm = LLM(str(path), quant=quant, num_threads=1)  # type: ignore[arg-type]
    text = (stories / "tinystories_sample.txt").read_text(encoding="utf-8")
    ids = [llm.loaded.tokenizer.encode(story.strip()) for story in text.split("<|endoftext|>") if story.strip()]
    loss, _ = mean_loss(llm.loaded.runner, ids)
    return loss


def test_all_greedy_reference_ids_in_float32(stories: Path) -> None:
    reference = [int(word) for word in (stories / "greedy_reference_ids.txt").read_text().split()]
    output = LLM(str(stories), quant="none").generate([[BOS]], SamplingParams(temperature=0, max_tokens=len(reference) - 1))
    assert [BOS, *output[0].completions[0].token_ids] == reference


def test_mean_loss_in_float32_is_the_published_one(stories: Path) -> None:
    assert loss_of(stories, stories, "none") == pytest.approx(1.2664, abs=0.0005)


def test_w8a8_on_load_costs_at_most_a_fifth_of_a_percent(stories: Path) -> None:
    assert loss_of(stories, stories, "w8a8") <= 1.2664 * 1.002


def test_checkpoint_of_llm_compressor_keeps_its_loss(shared_data: Path, stories: Path) -> None:
    assert loss_of(shared_data / "stories260k-w8a8", stories, "auto") == pytest.approx(1.2647, rel=0.003)
