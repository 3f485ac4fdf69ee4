"""Next-token distributions of one model, kept on disk, and those of another one held against them.

    <scratch>/text-<number>.logp    float32 [predicted tokens, vocab], row by row in the order of the text

so that the two models never need to be in memory together. Rows are worked on in float64, some at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paddle_ds.errors import QuantizationError
from paddle_ds.runtime.evaluate import position_logits
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds_slim.passport.data import TextData

FloatArray = npt.NDArray[np.float64]

#: elements of a block of rows: 32 MB in float64, of which there are some four at a time
_BLOCK_ELEMENTS = 1 << 22
#: elements of the logits of one forward pass
_CHUNK_ELEMENTS = 1 << 24
_MAX_CHUNK_TOKENS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class TextScores:
    """What one model makes of one text.

    Attributes:
        losses: float64 ``[predicted tokens]``, nats.
        top1: int64 ``[predicted tokens]``, the most probable token.
        divergences: float64 ``[predicted tokens]``, nats, KL(reference || this model); ``None`` for the reference.
    """

    losses: FloatArray
    top1: npt.NDArray[np.int64]
    divergences: FloatArray | None = None


def log_softmax(logits: npt.NDArray[np.floating]) -> FloatArray:  # type: ignore[type-arg]
    """Of the last axis, in float64. NaN and infinity go through to where they are reported."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        wide -= wide.max(axis=-1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def divergence(reference: FloatArray, other: FloatArray) -> FloatArray:
    """KL(reference || other) of each row of log-probabilities, nats, at least 0; NaN where either is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        found: FloatArray = (np.exp(reference) * (reference - other)).sum(axis=-1)
    return np.maximum(found, 0.0)  # a rounding error below 0 means nothing; NaN stays


def score_and_keep(runner: ModelRunner, text: TextData, path: Path, on_tokens: Callable[[int], None]) -> TextScores:
    """Scores of the reference, whose distributions go into ``path``.

    Raises:
        QuantizationError: the file cannot be written.
    """
    losses, top1 = [], []
    try:
        with path.open("wb") as file:
            for log_probs, targets in _blocks(runner, text):
                log_probs.astype(np.float32).tofile(file)
                losses.append(-log_probs[np.arange(len(targets)), targets])
                top1.append(log_probs.argmax(axis=-1))
                on_tokens(len(targets))
    except OSError as error:
        needed = 4 * text.num_predicted * runner.decoder.config.vocab_size
        raise QuantizationError(
            f"{path}: cannot be written: {error}; the reference's distributions over this text take {needed} bytes. "
            "Name a scratch directory with more room, or predict fewer tokens of each text"
        ) from error
    return TextScores(np.concatenate(losses), np.concatenate(top1))


def score(runner: ModelRunner, text: TextData, path: Path | None, on_tokens: Callable[[int], None]) -> TextScores:
    """Scores of a model, held against the distributions in ``path`` where there is one.

    Raises:
        QuantizationError: the file cannot be read or is too short.
    """
    losses, top1, divergences = [], [], []
    vocab = runner.decoder.config.vocab_size
    kept = None if path is None else _open(path, text.num_predicted, vocab)
    done = 0
    for log_probs, targets in _blocks(runner, text):
        losses.append(-log_probs[np.arange(len(targets)), targets])
        top1.append(log_probs.argmax(axis=-1))
        if kept is not None:
            divergences.append(divergence(kept[done : done + len(targets)].astype(np.float64), log_probs))
        done += len(targets)
        on_tokens(len(targets))
    return TextScores(np.concatenate(losses), np.concatenate(top1), np.concatenate(divergences) if divergences else None)


def _open(path: Path, num_rows: int, vocab: int) -> npt.NDArray[np.float32]:
    try:
        return np.memmap(path, np.float32, "r", shape=(num_rows, vocab))
    except (OSError, ValueError) as error:
        raise QuantizationError(f"{path}: the reference's distributions cannot be read: {error}; measure it again") from error


def _blocks(runner: ModelRunner, text: TextData) -> Iterator[tuple[FloatArray, npt.NDArray[np.int64]]]:
    """Log-probabilities float64 ``[rows, vocab]`` at consecutive positions, and the tokens that follow them."""
    vocab = runner.decoder.config.vocab_size
    rows = max(1, _BLOCK_ELEMENTS // vocab)
    chunk = max(1, min(_MAX_CHUNK_TOKENS, _CHUNK_ELEMENTS // vocab))
    for piece in text.pieces:
        targets = np.asarray(piece.ids[piece.start :], np.int64)
        position = done = 0
        for logits in position_logits(runner, piece.ids, chunk_tokens=chunk):
            first = max(0, piece.start - 1 - position)
            wanted = logits[first : first + len(targets) - done]  # what was read only, and the last token, predict nothing
            position += len(logits)
            for start in range(0, len(wanted), rows):
                block = wanted[start : start + rows]
                yield log_softmax(block), targets[done : done + len(block)]
                done += len(block)
