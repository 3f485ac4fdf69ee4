"""Logits and losses of given texts: for parity checks and quality measurements, outside the scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import PromptTooLong
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.sched import Chunk, Request, StepPlan


def position_logits(
    runner: ModelRunner, token_ids: Sequence[int], *, chunk_tokens: int = 256
) -> Iterator[npt.NDArray[np.float32]]:
    """Logits at every position of one text, float32 ``[tokens of the chunk, vocab]`` a piece.

    Uses the first blocks of the cache: no request may be running.

    Raises:
        PromptTooLong: the text is longer than the cache.
    """
    if len(token_ids) > runner.capacity_tokens:
        raise PromptTooLong.of(len(token_ids), None, runner.capacity_tokens)
    request = Request("evaluate", list(token_ids), SamplingParams(), seed=0, max_new_tokens=1, end_ids=frozenset())
    request.block_ids = list(range(-(-len(token_ids) // runner.block_tokens)))
    for start in range(0, len(token_ids), chunk_tokens):
        ids = request.token_ids[start : start + chunk_tokens]
        yield runner.all_logits(StepPlan((Chunk(request, start, ids, sample=False),)))


def mean_loss(runner: ModelRunner, texts: Sequence[Sequence[int]]) -> tuple[float, int]:
    """Mean cross entropy (nats a token) of predicting each text's tokens from those before, and how many were predicted."""
    total, count = 0.0, 0
    for ids in texts:
        logits = np.concatenate(list(position_logits(runner, ids)))[:-1].astype(np.float64)
        targets = np.asarray(ids[1:])
        peak = logits.max(axis=-1, keepdims=True)
        log_total = np.log(np.exp(logits - peak).sum(axis=-1)) + peak[:, 0]
        total += float((log_total - logits[np.arange(len(targets)), targets]).sum())
        count += len(targets)
    return total / max(count, 1), count
