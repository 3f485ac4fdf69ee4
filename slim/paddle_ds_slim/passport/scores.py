"""Everything that is measured of one model by itself, in one pass over it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping

from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.config.engine import CacheConfig, CacheDtype, EngineConfig, Quant, SchedulerConfig
from paddle_ds.engine.build import LoadedModel, load_opened
from paddle_ds_slim.passport.config import EvalConfig
from paddle_ds_slim.passport.data import EvalData, Ids, TextData
from paddle_ds_slim.passport.distributions import TextScores
from paddle_ds_slim.passport.generation import SPEED_PROMPT_TOKENS, AnswerScore, answer_tasks, continue_greedily
from paddle_ds_slim.passport.generation import decode_tokens_per_s as measure_speed
from paddle_ds_slim.passport.record import Model
from paddle_ds_slim.progress import Progress

#: generations side by side, and tokens of the cache they share
_STREAMS = 16
_CACHE_TOKENS = 8192

#: a text by name -> its scores; called with a function that is told of every token that is done
ScoreText = Callable[[str, TextData, Callable[[int], None]], TextScores]


@dataclasses.dataclass(frozen=True, eq=False)
class ModelScores:
    """What is known of one model, and the data it was found on."""

    model: Model
    data: EvalData
    texts: Mapping[str, TextScores]
    continuations: tuple[Ids, ...]
    answers: Mapping[str, list[AnswerScore]]
    decode_tokens_per_s: float | None
    load_s: float
    #: of all tensors as stored, scales included
    stored_bytes: int


def load_model(
    checkpoint: Checkpoint, quant: Quant, kv_dtype: CacheDtype, context_tokens: int, stage: str, progress: Progress
) -> LoadedModel:
    """The model with room for ``context_tokens`` of prompt and answer, or for its own context where that is less.

    Raises:
        PaddleDSError: the checkpoint or the memory does not allow it.
    """
    context = min(context_tokens, checkpoint.config.max_position_embeddings)
    engine = EngineConfig(
        quant=quant,
        max_context_tokens=context,
        cache=CacheConfig(max_tokens=max(context, min(_STREAMS * context, _CACHE_TOKENS)), dtype=kv_dtype),
        scheduler=SchedulerConfig(max_running_requests=_STREAMS, max_waiting_requests=sys.maxsize),
    )
    return load_opened(checkpoint, engine, lambda share: progress(stage, "load", round(100 * share), 100))


def needed_tokens(config: EvalConfig, data: EvalData) -> int:
    """Longest prompt with its answer, or piece of text, that will be asked for."""
    answer = config.max_answer_tokens if data.tasks else 0
    continuation = config.greedy_tokens if data.prompts else 0
    speed = SPEED_PROMPT_TOKENS + config.speed_tokens + 1
    return max(data.longest_piece(), data.longest_prompt() + max(answer, continuation), speed)


def measure_model(
    loaded: LoadedModel,
    checkpoint: Checkpoint,
    config: EvalConfig,
    data: EvalData,
    score_text: ScoreText,
    stage: str,
    progress: Progress,
) -> ModelScores:
    """Run ``loaded`` over all of ``data``."""
    texts = {}
    for name, text in data.texts.items():
        texts[name] = score_text(name, text, _counter(progress, stage, name, text.num_predicted))
    loaded.engine.scheduler.pool.forget_all()  # texts were written over what the pool knew of the cache
    continuations: list[Ids] = []
    if data.prompts:
        progress(stage, "continuations", 0, 1)
        continuations = continue_greedily(loaded, data.prompts, config.greedy_tokens)
    answers: dict[str, list[AnswerScore]] = {}
    if data.tasks:
        progress(stage, "answers", 0, 1)
        answers = answer_tasks(loaded, data, config)
    speed = None
    if config.speed_tokens:
        progress(stage, "speed", 0, 1)
        speed = measure_speed(loaded, next(iter(data.texts.values())).pieces[0].ids, config.speed_tokens)
    progress(stage, "", 1, 1)
    model = Model(checkpoint.directory.name, checkpoint.format, loaded.recipe.name, loaded.plan.kv_dtype)
    stored_bytes = sum(tensor.nbytes for tensor in checkpoint.stored().values())
    return ModelScores(model, data, texts, tuple(continuations), answers, speed, loaded.load_s, stored_bytes)


def _counter(progress: Progress, stage: str, name: str, total: int) -> Callable[[int], None]:
    done = 0

    def count(num_tokens: int) -> None:
        nonlocal done
        done += num_tokens
        progress(stage, name, done, total)

    return count
