"""Mean losses of small trained models: INT8 costs next to nothing, and the fast path loses what the reference loses.

Rounding of activations makes whole texts a coarse probe: a value half-way between two integers takes either, and everything
behind it differs by about a step of the quantisation. Embeddings changed by 2e-7 move the reference's own loss over whole stories
by up to 1.3e-3 of it. So equality is tested where few roundings can turn: over short pieces, and without rounded activations.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.config.engine import EngineConfig, Quant
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.engine.assets import EMBEDDED_MODEL, recipe_for
from paddle_ds.kernels import native
from paddle_ds.kernels.registry import choose
from paddle_ds.runtime.evaluate import mean_loss, position_logits
from paddle_ds.runtime.loader import load_decoder
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.runtime.sampler import Sampler
from paddle_ds.text import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from tiny_r1.corpus import Corpus

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

Texts = Sequence[Sequence[int]]

#: what INT8 may add to the loss in float32
WORST_COST = 0.002
#: of the loss: without rounded activations, with them over short pieces, and over whole texts
SAME_FLOATS, SAME_INTEGERS, SAME_ON_THE_WHOLE = 1e-6, 1e-4, 2e-3
PIECE_TOKENS = 4


@dataclass(frozen=True)
class Model:
    """A checkpoint and texts in its tokens."""

    directory: Path
    texts: Texts

    def runner(self, quant: Quant, operators: str) -> ModelRunner:
        return _load(self.directory, quant, operators)

    def loss(self, quant: Quant, operators: str, texts: Texts | None = None) -> float:
        return mean_loss(self.runner(quant, operators), self.texts if texts is None else texts)[0]

    def pieces(self) -> Texts:
        """The texts in pieces that begin anew."""
        starts = [(ids, start) for ids in self.texts for start in range(0, len(ids) - 1, PIECE_TOKENS)]
        return [ids[start : start + PIECE_TOKENS] for ids, start in starts]


@functools.cache
def _load(directory: Path, quant: Quant, operators: str) -> ModelRunner:
    with open_checkpoint(directory) as checkpoint:
        recipe = recipe_for(checkpoint, EngineConfig(quant=quant))
        decoder = load_decoder(checkpoint, recipe, choose(CpuDevice(), only=operators))
    assert (decoder.fused is not None) == (quant == "w8a8" and operators == "native")
    return ModelRunner(decoder, Sampler(decoder.config.vocab_size), num_blocks=40, block_tokens=16)


@pytest.fixture(scope="module", params=["tiny-r1", "stories260k", "stories260k-w8a8"])
def model(request: pytest.FixtureRequest) -> Model:
    if request.param == "tiny-r1":
        return Model(EMBEDDED_MODEL, held_out_sums())
    shared = request.getfixturevalue("shared_data")
    return Model(shared / request.param, stories(shared / "stories260k"))


def held_out_sums() -> Texts:
    """Questions that the embedded model was not trained on, with traces and answers."""
    corpus, tokenizer = Corpus(7, held_out=True), Tokenizer.from_dir(EMBEDDED_MODEL)
    cells = [(task, style) for task in ("add 2", "add m", "sub 3", "neg 2", "mul 2x1") for style in ("bare", "en", "zh")]
    samples = [corpus.sum_of(corpus.problem(task), task, style) for task, style in cells]
    return [tokenizer.encode(sample.prompt + sample.completion) for sample in samples]


def stories(directory: Path) -> Texts:
    text = (directory / "tinystories_sample.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_dir(directory)
    return [tokenizer.encode(story.strip()) for story in text.split("<|endoftext|>") if story.strip()]


def test_w8a8_on_the_fast_path_costs_at_most_a_fifth_of_a_percent(model: Model) -> None:
    assert model.loss("w8a8", "native") <= model.loss("none", "reference") * (1 + WORST_COST)


def test_w8a8_over_short_pieces_is_the_reference(model: Model) -> None:
    pieces = model.pieces()
    assert model.loss("w8a8", "native", pieces) == pytest.approx(model.loss("w8a8", "reference", pieces), rel=SAME_INTEGERS)


def test_w8a8_gives_most_positions_of_short_pieces_the_logits_of_the_reference(model: Model) -> None:
    ours, oracle = (
        np.concatenate([next(position_logits(model.runner("w8a8", operators), ids)) for ids in model.pieces()[:150]])
        for operators in ("native", "reference")
    )
    same = np.abs(ours - oracle).max(axis=1) <= 1e-4
    assert same.mean() >= 0.9


def test_w8a8_over_whole_texts_is_the_reference_as_far_as_that_is_sure_of_itself(model: Model) -> None:
    assert model.loss("w8a8", "native") == pytest.approx(model.loss("w8a8", "reference"), rel=SAME_ON_THE_WHOLE)


@pytest.mark.parametrize("quant", ["w8a16", "none"])
def test_without_rounded_activations_whole_texts_lose_what_the_reference_loses(model: Model, quant: Quant) -> None:
    assert model.loss(quant, "native") == pytest.approx(model.loss(quant, "reference"), rel=SAME_FLOATS)


def test_the_embedded_model_over_whole_texts_is_the_reference() -> None:
    model = Model(EMBEDDED_MODEL, held_out_sums())
    assert model.loss("w8a8", "native") == pytest.approx(model.loss("w8a8", "reference"), rel=SAME_INTEGERS)
