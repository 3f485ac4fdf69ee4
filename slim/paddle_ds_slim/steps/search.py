"""What the steps that try several values have in common: the tokens they try them on, and the error they compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds_slim.block_state import PAIRS, BlockState, Fold, widened
from paddle_ds_slim.recipe import Pair
from paddle_ds_slim.rounding import as_run, rounded

#: a factor is kept within these bounds, so that no channel's range leaves float16
_LEAST, _MOST = 1e-4, 1e4


def spread_rows(x: Float32Array, count: int) -> Float32Array:
    """At most ``count`` rows, evenly spread and always the same."""
    if len(x) <= count:
        return x
    return x[np.linspace(0, len(x) - 1, count).astype(np.intp)]


def bounded(scale: Float32Array) -> Float32Array:
    """A factor per channel, finite and within bounds; 1 where nothing was seen."""
    usable = np.where(np.isfinite(scale) & (scale > 0), scale, np.float32(1))
    return np.clip(usable, _LEAST, _MOST).astype(np.float32)


def quantized_readers(state: BlockState, pair: Pair) -> tuple[str, ...]:
    """The linear layers behind a pair that will hold integers."""
    return tuple(name for name in PAIRS[pair][1] if state.formats[name].scheme != "dense")


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """Factors per channel of the producer, and what they came from: ``alpha``, ``ratio`` … and its value."""

    label: str
    value: float
    scale: Float32Array


def fold_best(state: BlockState, pair: Pair, candidates: Iterable[Candidate], search_tokens: int, min_gain: float = 0.0) -> None:
    """Fold the candidate that gives the least output error, or none where none takes ``min_gain`` of it away.

    The error is ``sum over readers of ||x W' - q(x / s) q(W s)'||^2 / ||x W'||^2`` on a sample of tokens.

    """
    readers = quantized_readers(state, pair)
    sample = spread_rows(state.inputs[PAIRS[pair][1][0]], search_tokens)
    exact = [sample @ state.weight(name).T for name in readers]
    best: Candidate | None = None
    before = least = output_error(state, readers, sample, exact, None)
    for candidate in candidates:
        error = output_error(state, readers, sample, exact, widened(state.config, pair, candidate.scale))
        if error < least:
            least, best = error, candidate
    if least > (1 - min_gain) * before:
        least, best = before, None
    state.choices[pair] = {"error_before": before, "error": least}
    if best is not None:
        state.choices[pair][best.label] = best.value
        state.fold(Fold(pair, best.scale))


def output_error(
    state: BlockState, readers: Sequence[str], x: Float32Array, exact: Sequence[Float32Array], scale: Float32Array | None
) -> float:
    """See :func:`fold_best`; ``scale`` is per input of the readers."""
    total = 0.0
    scaled = x if scale is None else x / scale
    for name, wanted in zip(readers, exact, strict=True):
        form = state.formats[name]
        weight = state.weight(name) if scale is None else state.weight(name) * scale
        found = as_run(scaled, form.scheme) @ rounded(weight, form).to_float32().T
        found -= wanted
        norm = float(np.vdot(wanted, wanted))
        total += float(np.vdot(found, found)) / norm if norm else 0.0
    return total
