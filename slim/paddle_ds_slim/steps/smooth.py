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

from paddle_ds_slim.block_state import PAIRS, BlockState, narrowed_max
from paddle_ds_slim.recipe import Awq, Pair, Smooth
from paddle_ds_slim.steps.search import Candidate, bounded, fold_best, quantized_readers, spread_rows


def smooth(step: Smooth, state: BlockState) -> None:
    """Fold SmoothQuant's factors, pair by pair."""
    for pair in step.pairs:
        if quantized_readers(state, pair):
            fold_best(state, pair, _smooth_candidates(step, state, pair), step.search_tokens, step.min_gain)


def awq(step: Awq, state: BlockState) -> None:
    """Fold AWQ's factors, pair by pair."""
    for pair in step.pairs:
        if quantized_readers(state, pair):
            fold_best(state, pair, _awq_candidates(step, state, pair), step.search_tokens)


def _smooth_candidates(step: Smooth, state: BlockState, pair: Pair) -> Iterator[Candidate]:
    readers = PAIRS[pair][1]
    largest_inputs = narrowed_max(state.config, pair, np.abs(state.inputs[readers[0]]).max(axis=0))
    largest_weights = np.max([np.abs(state.weight(name)).max(axis=0) for name in readers], axis=0)
    largest_weights = narrowed_max(state.config, pair, largest_weights)
    with np.errstate(divide="ignore", invalid="ignore"):  # a channel without inputs or weights is left alone by bounded()
        for alpha in step.alphas:
            yield Candidate("alpha", alpha, bounded(largest_inputs**alpha / largest_weights ** (1 - alpha)))
    if step.piecewise:
        yield _piecewise(step, state, pair)


def _piecewise(step: Smooth, state: BlockState, pair: Pair) -> Candidate:
    """What PaddleSlim's ``PieceWiseSearch`` finds, shown all readers at once (its own ``Smooth`` shows it the last one)."""
    from paddle_ds_slim.paddleslim_adapter import search_smooth_scale  # its import of PaddleSlim takes seconds

    readers = PAIRS[pair][1]
    inputs = state.inputs[readers[0]]
    weights = np.concatenate([state.weight(name) for name in readers])
    largest = np.abs(inputs).max(axis=0)
    sample = spread_rows(inputs, step.search_tokens)
    found = search_smooth_scale("piecewise", sample, largest, weights, pieces=step.piecewise)
    return Candidate("piecewise", float(step.piecewise), bounded(narrowed_max(state.config, pair, found)))


def _awq_candidates(step: Awq, state: BlockState, pair: Pair) -> Iterator[Candidate]:
    mean_inputs = narrowed_max(state.config, pair, np.abs(state.inputs[PAIRS[pair][1][0]]).mean(axis=0))
    for number in range(1, step.num_ratios + 1):
        ratio = number / step.num_ratios
        scale = bounded(mean_inputs**ratio)
        # only the factors among each other matter; around 1 they keep the norm's weights in range
        yield Candidate("ratio", ratio, bounded(scale / np.sqrt(scale.max() * scale.min())))
