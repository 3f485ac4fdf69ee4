"""Scores of two models to one passport."""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
from importlib import metadata

import numpy as np

import paddle_ds
from paddle_ds_slim.passport.config import EvalConfig
from paddle_ds_slim.passport.data import EvalData, digest
from paddle_ds_slim.passport.gate import judge
from paddle_ds_slim.passport.generation import AnswerScore, common_prefix
from paddle_ds_slim.passport.intervals import paired_difference, share
from paddle_ds_slim.passport.record import (
    VERSION,
    Change,
    Data,
    Divergence,
    Drop,
    ExactMatch,
    GateRecord,
    Greedy,
    Histogram,
    LayerError,
    Pair,
    Passport,
    Ratio,
    Reasoning,
    Source,
    Task,
)
from paddle_ds_slim.passport.scores import ModelScores
from paddle_ds_slim.recipe import Gate

#: of the histogram of divergences: two bins a decade, so that models of every quality fall into the same bins
_EDGES = tuple(float(f"{10 ** (exponent / 2):.3g}") for exponent in range(-14, 5))
#: beyond it exp() overflows
_MAX_EXPONENT = 700.0
#: fields of the configuration that are no settings
_MAPPINGS = ("texts", "tasks")


def assemble(
    config: EvalConfig,
    reference: ModelScores | None,
    quantized: ModelScores,
    layers: tuple[LayerError, ...],
    budgets: Gate,
    *,
    quick: bool,
) -> Passport:
    """The passport of ``quantized``, with its verdict on ``budgets``; ``reference`` is ``None`` where there is none."""
    data = quantized.data
    losses = {name: _mean_losses(name, reference, quantized) for name in data.texts}
    passport = Passport(
        version=VERSION,
        reference=None if reference is None else reference.model,
        quantized=quantized.model,
        quick=quick,
        loss={name: Change.of(*pair) for name, pair in losses.items()},
        perplexity={name: Change.of(_perplexity(one), _perplexity(other)) for name, (one, other) in losses.items()},
        kl=_divergence(quantized) if reference is not None else None,
        top1_agreement=None if reference is None else _top1_agreement(reference, quantized),
        greedy=None if reference is None or not data.prompts else _greedy(config, reference, quantized),
        reasoning=_reasoning(data, reference, quantized) if data.tasks else None,
        tasks={
            name: _task(None if reference is None else reference.answers[name], quantized.answers[name]) for name in data.tasks
        },
        layers=layers,
        bytes=Ratio.of(None if reference is None else reference.stored_bytes, quantized.stored_bytes),
        load_s=Pair(None if reference is None else reference.load_s, quantized.load_s),
        decode_tokens_per_s=_speed(reference, quantized),
        data=_data(config, data),
        versions=versions(),
        gate=GateRecord(True, {}, {}),
    )
    return dataclasses.replace(passport, gate=judge(passport, budgets))


def versions() -> dict[str, str | None]:
    """Versions of what took part; ``None`` for what is not installed."""
    return {
        "paddle_ds": paddle_ds.__version__,
        "paddle": _version("paddlepaddle") or _version("paddlepaddle-gpu"),
        "paddleslim": _version("paddleslim"),
        "paddlenlp": _version("paddlenlp"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _mean_losses(name: str, reference: ModelScores | None, quantized: ModelScores) -> tuple[float | None, float]:
    ours = float(quantized.texts[name].losses.mean())
    return None if reference is None else float(reference.texts[name].losses.mean()), ours


def _perplexity(loss: float | None) -> float | None:
    if loss is None:
        return None
    return math.exp(loss) if loss < _MAX_EXPONENT else math.inf


def _divergence(quantized: ModelScores) -> Divergence:
    values = np.concatenate([text.divergences for text in quantized.texts.values() if text.divergences is not None])
    bins = np.searchsorted(_EDGES, values, side="right")  # NaN goes to the last, beyond every edge
    counts = np.bincount(bins, minlength=len(_EDGES) + 1)
    histogram = Histogram(_EDGES, tuple(int(count) for count in counts))
    # quantile() of something with NaN is NaN, as mean and max are
    return Divergence(float(values.mean()), float(np.quantile(values, 0.99)), float(values.max()), values.size, histogram)


def _top1_agreement(reference: ModelScores, quantized: ModelScores) -> float:
    same = [reference.texts[name].top1 == quantized.texts[name].top1 for name in quantized.texts]
    return float(np.concatenate(same).mean())


def _greedy(config: EvalConfig, reference: ModelScores, quantized: ModelScores) -> Greedy:
    pairs = list(zip(reference.continuations, quantized.continuations, strict=True))
    lengths = [common_prefix(one, other) for one, other in pairs]
    whole = statistics.mean(one == other for one, other in pairs)
    return Greedy(len(pairs), config.greedy_tokens, statistics.mean(lengths), statistics.median(lengths), float(whole))


def _reasoning(data: EvalData, reference: ModelScores | None, quantized: ModelScores) -> Reasoning:
    ours = _all_answers(quantized)
    theirs = None if reference is None else _all_answers(reference)

    def mean(answers: list[AnswerScore] | None, field: str) -> float | None:
        return None if answers is None else float(statistics.mean(getattr(answer, field) for answer in answers))

    closed = Pair(mean(theirs, "closes"), mean(ours, "closes")) if data.reasons else None
    lengths = Ratio.of(mean(theirs, "num_tokens"), mean(ours, "num_tokens"))
    return Reasoning(len(ours), closed, Pair(mean(theirs, "loops"), mean(ours, "loops")), lengths)


def _all_answers(scores: ModelScores) -> list[AnswerScore]:
    return [answer for answers in scores.answers.values() for answer in answers]


def _task(reference: list[AnswerScore] | None, quantized: list[AnswerScore]) -> Task:
    if reference is None:
        return Task(len(quantized), None, _exact_match(quantized), None)
    pairs = [(one.is_right, other.is_right) for one, other in zip(reference, quantized, strict=True)]
    both, first, second, neither = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
    drop = paired_difference(both, first, second, neither)
    record = Drop(drop.value, drop.low, drop.high, only_reference=first, only_quantized=second)
    return Task(len(quantized), _exact_match(reference), _exact_match(quantized), record)


def _exact_match(answers: list[AnswerScore]) -> ExactMatch:
    num_right = sum(answer.is_right for answer in answers)
    found = share(num_right, len(answers))
    return ExactMatch(found.value, found.low, found.high, num_right)


def _speed(reference: ModelScores | None, quantized: ModelScores) -> Ratio | None:
    if quantized.decode_tokens_per_s is None:
        return None
    return Ratio.of(None if reference is None else reference.decode_tokens_per_s, quantized.decode_tokens_per_s)


def _data(config: EvalConfig, data: EvalData) -> Data:
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in _MAPPINGS}
    tasks: dict[str, Source] = {}
    for name, task in data.tasks.items():
        sha256 = digest([item.prompt for item in task.items], *(item.expected for item in task.items))
        tasks[name] = Source(task.source, sha256, len(task.items))
    texts: dict[str, Source] = {}
    for name, text in data.texts.items():
        texts[name] = Source(text.source, digest([piece.ids for piece in text.pieces]), text.num_predicted)
    greedy = Source("prompts", digest(data.prompts), len(data.prompts)) if data.prompts else None
    return Data(texts, tasks, greedy, settings)
