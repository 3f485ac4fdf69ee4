"""Factors per channel that make a layer easier to round, folded into what comes before it.

SmoothQuant (arXiv 2211.10438, equation 4) shares difficulty between activations and weights::

    s[k] = max|x[:, k]| ** alpha / max|W[:, k]| ** (1 - alpha)

AWQ (arXiv 2306.00978, equation 5) protects weights whose inputs are large on average::

    s[k] = mean|x[:, k]| ** ratio

``max|W|`` runs over all readers of the pair (PaddleSlim's ``Smooth`` takes its last one only). ``alpha`` and ``ratio`` are
searched for each pair of each layer; doing nothing is always among the candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds_slim.block_state import PAIRS, BlockState, narrowed_max
from paddle_ds_slim.recipe import Awq, Pair, Smooth
from paddle_ds_slim.steps.search import bounded, fold_best, quantized_readers


def smooth(step: Smooth, state: BlockState) -> None:
    """Fold SmoothQuant's factors, pair by pair."""
    for pair in step.pairs:
        if quantized_readers(state, pair):
            fold_best(state, pair, _smooth_candidates(step, state, pair), step.search_tokens, "alpha")


def awq(step: Awq, state: BlockState) -> None:
    """Fold AWQ's factors, pair by pair."""
    for pair in step.pairs:
        if quantized_readers(state, pair):
            fold_best(state, pair, _awq_candidates(step, state, pair), step.search_tokens, "ratio")


def _smooth_candidates(step: Smooth, state: BlockState, pair: Pair) -> Iterator[tuple[float, Float32Array]]:
    readers = PAIRS[pair][1]
    largest_inputs = narrowed_max(state.config, pair, np.abs(state.inputs[readers[0]]).max(axis=0))
    largest_weights = np.max([np.abs(state.weight(name)).max(axis=0) for name in readers], axis=0)
    largest_weights = narrowed_max(state.config, pair, largest_weights)
    with np.errstate(divide="ignore", invalid="ignore"):  # a channel without inputs or weights is left alone by bounded()
        for alpha in step.alphas:
            yield alpha, bounded(largest_inputs**alpha / largest_weights ** (1 - alpha))


def _awq_candidates(step: Awq, state: BlockState, pair: Pair) -> Iterator[tuple[float, Float32Array]]:
    mean_inputs = narrowed_max(state.config, pair, np.abs(state.inputs[PAIRS[pair][1][0]]).mean(axis=0))
    for number in range(1, step.num_ratios + 1):
        ratio = number / step.num_ratios
        scale = bounded(mean_inputs**ratio)
        # only the factors among each other matter; around 1 they keep the norm's weights in range
        yield ratio, bounded(scale / np.sqrt(scale.max() * scale.min()))
