"""From rows of logits to tokens. Each row is treated by itself, so a request's tokens do not depend on its neighbours.

Order of operations on a row: logit bias and penalties, ids that may not end the answer yet, then greedy choice or temperature,
top-k, top-p, min-p and one draw. Reported log probabilities are those of the model's own distribution, before all of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import InternalError
from paddle_ds.kernels.candidates import Candidates, reference
from paddle_ds.kernels.upload import upload
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
        choose: the operator that finds a row's most likely tokens, see ``kernels.candidates``.
    """

    def __init__(self, num_tokens: int, choose: Callable[..., Candidates] = reference) -> None:
        self._num_tokens = num_tokens
        self._choose = choose

    def sample(self, logits: paddle.Tensor, requests: Sequence[Request]) -> list[SampledToken]:
        """``logits`` float32 [S, vocab], one row a request.

        Raises:
            InternalError: a row is not finite.
        """
        adjusted = self._adjusted(logits, requests)
        temperatures = np.array([request.params.temperature for request in requests], np.float32)
        count = max(_num_candidates(request.params, self._num_tokens) for request in requests)
        found = self._choose(adjusted, self._num_tokens, temperatures, count)
        if not np.isfinite(found.values[:, 0]).all():
            broken = [r.request_id for r, peak in zip(requests, found.values[:, 0], strict=True) if not np.isfinite(peak)]
            raise InternalError(f"the model's logits are not finite for request {', '.join(broken)}")
        chosen = [self._token(adjusted, found, row, request) for row, request in enumerate(requests)]
        return self._with_logprobs(logits, chosen, requests)

    def _adjusted(self, logits: paddle.Tensor, requests: Sequence[Request]) -> paddle.Tensor:
        changed = [row for row, request in enumerate(requests) if _changes_logits(request)]
        if not changed:
            return logits
        rows = logits.numpy().copy()
        for row in changed:
            _adjust(rows[row, : self._num_tokens], requests[row])
        return upload(rows)

    def _token(self, logits: paddle.Tensor, found: Candidates, row: int, request: Request) -> int:
        if request.params.temperature == 0:
            return int(found.ids[row, 0])

        def everything() -> FloatRow:
            values: FloatRow = logits[row].numpy()[: self._num_tokens]
            return values

        ids, weights = _distribution(found.ids[row], found.values[row], float(found.totals[row]), everything, request.params)
        cumulative = np.cumsum(weights)  # a draw inverts it at one uniform number
        position = int(np.searchsorted(cumulative, uniform(request) * cumulative[-1], side="right"))
        return int(ids[min(position, len(ids) - 1)])

    def _with_logprobs(self, logits: paddle.Tensor, chosen: Sequence[int], requests: Sequence[Request]) -> list[SampledToken]:
        counts = [request.params.logprobs for request in requests]
        asked = [row for row, count in enumerate(counts) if count is not None]
        tokens = [SampledToken(token_id) for token_id in chosen]
        if not asked:
            return tokens
        rows = paddle.gather(logits, upload(np.array(asked)))
        most = min(max(count or 1 for count in counts), self._num_tokens)
        found = self._choose(rows, self._num_tokens, np.ones(len(asked), np.float32), most)
        for index, row in enumerate(asked):
            log_total = float(found.values[index, 0]) + math.log(float(found.totals[index]))
            count = min(counts[row] or 0, most)
            pairs = zip(found.ids[index, :count], found.values[index, :count], strict=True)
            top = tuple((int(token_id), float(value) - log_total) for token_id, value in pairs)
            tokens[row] = SampledToken(chosen[row], float(rows[index, chosen[row]]) - log_total, top)
        return tokens


def _num_candidates(params: SamplingParams, num_tokens: int) -> int:
    """Most likely tokens that a request with ``params`` looks at; one where it wants the best, or all of them."""
    if params.temperature == 0 or not (params.top_k or params.top_p < 1 or params.min_p > 0):
        return 1
    return min(params.top_k or _TOP_P_CANDIDATES, num_tokens)


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


def _distribution(
    ids: IdRow, values: FloatRow, total: float, everything: Callable[[], FloatRow], params: SamplingParams
) -> tuple[IdRow, Weights]:
    """Ids that are left and their weights (probabilities up to a common factor).

    Args:
        ids, values: the most likely ids by falling logit, and their logits.
        total: sum of all weights.
        everything: gives the whole row, for what the most likely ids do not settle.
    """

    def weigh(logits: FloatRow) -> Weights:
        with np.errstate(over="ignore"):  # a tiny temperature: all but the best go to exp(-inf) = 0
            return np.exp((logits.astype(np.float64) - float(values[0])) / params.temperature)

    if params.top_k:
        ids = ids[: params.top_k]
        weights = weigh(values[: params.top_k])
        total = float(weights.sum())
    elif params.top_p == 1 and params.min_p == 0:
        row = everything()
        return np.arange(len(row)), weigh(row)
    else:
        weights = weigh(values)
        reaches_top_p = params.top_p < 1 and weights.sum() >= params.top_p * total
        if not (reaches_top_p or weights[-1] < params.min_p):
            row = everything()
            ids = np.argsort(-row, kind="stable")
            weights = weigh(row[ids])
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


def uniform(request: Request) -> float:
    """A number in [0, 1) that depends on the request's seed and the token's position, on nothing else."""
    generator = np.random.Philox(key=request.seed & (2**64 - 1), counter=request.num_output_tokens)
    return float(np.random.Generator(generator).random())
