"""From rows of logits to tokens. Each row is treated by itself, so a request's tokens do not depend on its neighbours.

Order of operations on a row: logit bias and penalties, ids that may not end the answer yet, then greedy choice or temperature,
top-k, top-p, min-p and one draw. Reported log probabilities are those of the model's own distribution, before all of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import InternalError
from paddle_ds.sched import Request, SampledToken

FloatRow = npt.NDArray[np.float32]
IdRow = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

#: candidates that nearly always hold the top-p set; the whole vocabulary is sorted only where they do not
_TOP_P_CANDIDATES = 1024


class Sampler:
    """Picks one token per row.

    Args:
        num_tokens: ids of the tokenizer; rows of the head beyond them are padding and are never sampled.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def sample(self, logits: npt.NDArray[np.float32], requests: Sequence[Request]) -> list[SampledToken]:
        """``logits`` float32 [S, vocab], one row a request.

        Raises:
            InternalError: a row is not finite.
        """
        logits = logits[:, : self._num_tokens]
        best = logits.argmax(axis=-1)
        peaks = logits[np.arange(len(logits)), best]  # argmax points at a NaN where there is one
        if not np.isfinite(peaks).all():
            broken = [request.request_id for request, peak in zip(requests, peaks, strict=True) if not np.isfinite(peak)]
            raise InternalError(f"the model's logits are not finite for request {', '.join(broken)}")
        return [self._sample_row(logits[row], int(best[row]), request) for row, request in enumerate(requests)]

    def _sample_row(self, row: FloatRow, best: int, request: Request) -> SampledToken:
        params = request.params
        if _changes_logits(request):
            adjusted = _adjust(row.copy(), request)
            best = int(adjusted.argmax())
        else:
            adjusted = row
        token_id = best if params.temperature == 0 else _draw(adjusted, best, request)
        if params.logprobs is None:
            return SampledToken(token_id)
        return _with_logprobs(row, token_id, params.logprobs)


def _changes_logits(request: Request) -> bool:
    params = request.params
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
        or request.suppressed_ids
    )


def _adjust(row: FloatRow, request: Request) -> FloatRow:
    """Apply bias, penalties and held-back ids, in place."""
    params = request.params
    if params.repetition_penalty != 1:
        seen = np.unique(np.asarray(request.token_ids))
        values = row[seen]
        penalty = np.float32(params.repetition_penalty)
        row[seen] = np.where(values > 0, values / penalty, values * penalty)
    if (params.presence_penalty or params.frequency_penalty) and request.num_output_tokens:
        ids, counts = np.unique(np.asarray(request.output_ids), return_counts=True)
        row[ids] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts.astype(np.float32)
    for token_id, bias in (params.logit_bias or {}).items():
        row[token_id] += np.float32(bias)
    suppressed = [token_id for token_id in request.suppressed_ids if 0 <= token_id < len(row)]
    if len(suppressed) < len(row):  # with every id held back there is nothing to choose, so none is
        row[suppressed] = -np.inf
    return row


def _draw(row: FloatRow, best: int, request: Request) -> int:
    """One token from the truncated distribution, by inverting its cumulative sum at one uniform number."""
    ids, weights = _distribution(row, best, request.params)
    cumulative = np.cumsum(weights)
    position = int(np.searchsorted(cumulative, uniform(request) * cumulative[-1], side="right"))
    return int(ids[min(position, len(ids) - 1)])


def _distribution(row: FloatRow, best: int, params: SamplingParams) -> tuple[IdRow, Weights]:
    """Ids that are left and their weights (probabilities up to a common factor)."""

    def weigh(values: FloatRow) -> Weights:
        with np.errstate(over="ignore"):  # a tiny temperature: all but the best go to exp(-inf) = 0
            return np.exp((values.astype(np.float64) - float(row[best])) / params.temperature)

    if params.top_k:
        ids = top_ids(row, min(params.top_k, len(row)))
        weights = weigh(row[ids])
        total = float(weights.sum())
    elif params.top_p == 1 and params.min_p == 0:
        return np.arange(len(row)), weigh(row)
    else:
        everything = weigh(row)
        total = float(everything.sum())
        ids = top_ids(row, min(_TOP_P_CANDIDATES, len(row)))
        weights = everything[ids]
        reaches_top_p = params.top_p < 1 and weights.sum() >= params.top_p * total
        if not (reaches_top_p or weights[-1] < params.min_p):
            ids = top_ids(row, len(row))
            weights = everything[ids]
    keep = _truncate(weights, total, params)
    return ids[:keep], weights[:keep]


def _truncate(weights: Weights, total: float, params: SamplingParams) -> int:
    """How many of the falling ``weights`` stay after top-p and min-p; at least one."""
    keep = len(weights)
    if params.top_p < 1:
        reached = np.cumsum(weights) >= params.top_p * total
        keep = int(reached.argmax()) + 1 if reached.any() else keep
    if params.min_p > 0:
        keep = min(keep, int((weights >= params.min_p * weights[0]).sum()))
    return max(keep, 1)


def top_ids(row: FloatRow, count: int) -> IdRow:
    """The ``count`` ids with the largest logits, by falling logit, ties by rising id."""
    if count < len(row):
        threshold = np.partition(row, len(row) - count)[len(row) - count]
        ids = np.flatnonzero(row >= threshold)
    else:
        ids = np.arange(len(row))
    return ids[np.argsort(-row[ids], kind="stable")][:count]


def uniform(request: Request) -> float:
    """A number in [0, 1) that depends on the request's seed and the token's position, on nothing else."""
    generator = np.random.Philox(key=request.seed & (2**64 - 1), counter=request.num_output_tokens)
    return float(np.random.Generator(generator).random())


def _with_logprobs(row: FloatRow, token_id: int, count: int) -> SampledToken:
    peak = float(row.max())
    log_total = peak + float(np.log(np.exp(row.astype(np.float64) - peak).sum()))
    top = tuple((int(i), float(row[i]) - log_total) for i in top_ids(row, min(count, len(row)))) if count else ()
    return SampledToken(token_id, float(row[token_id]) - log_total, top)
