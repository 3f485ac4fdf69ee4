"""Greedy continuations, answers to questions, and how fast a model decodes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence

from paddle_ds.config.sampling import SamplingParams, derive_seed
from paddle_ds.engine.build import LoadedModel
from paddle_ds.engine.llm import LLM
from paddle_ds.text import ReasoningSplitter, Tokenizer
from paddle_ds.text.reasoning import THINK_END
from paddle_ds_slim.passport.config import EvalConfig
from paddle_ds_slim.passport.data import EvalData, Ids, Item
from paddle_ds_slim.passport.grading import is_right, loops

#: stands behind the tokens of a continuation that the model ended itself
END = -1
_SPEED_RUNS = 3
SPEED_PROMPT_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class AnswerScore:
    """One answer, without its text.

    Attributes:
        closes: whether ``</think>`` is in it.
        loops: see :func:`paddle_ds_slim.passport.grading.loops`.
    """

    is_right: bool
    closes: bool
    loops: bool
    num_tokens: int


def continue_greedily(loaded: LoadedModel, prompts: Sequence[Ids], num_tokens: int) -> list[Ids]:
    """At most ``num_tokens`` tokens behind each prompt, or what fits into the context; :data:`END` is one of them."""
    limit = loaded.engine.limits.max_context_tokens
    params = [SamplingParams(temperature=0, max_tokens=max(1, min(num_tokens, limit - len(prompt)))) for prompt in prompts]
    outputs = LLM.of(loaded).generate([list(prompt) for prompt in prompts], params, progress=False)
    completions = [output.completions[0] for output in outputs]
    return [(*c.token_ids, *([END] if c.finish_reason == "stop" else []))[:num_tokens] for c in completions]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens from the beginning that are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def answer_tasks(loaded: LoadedModel, data: EvalData, config: EvalConfig) -> dict[str, list[AnswerScore]]:
    """Ask every question of every task, all of them batched."""
    asked = [(name, item) for name, task in data.tasks.items() for item in task.items]
    limit = loaded.engine.limits.max_context_tokens
    params = [
        SamplingParams(
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=max(1, min(config.max_answer_tokens, limit - len(item.prompt))),
            seed=derive_seed(config.seed, index),
        )
        for index, (_, item) in enumerate(asked)
    ]
    outputs = LLM.of(loaded).generate([list(item.prompt) for _, item in asked], params, progress=False)
    scores: dict[str, list[AnswerScore]] = {name: [] for name in data.tasks}
    for (name, item), output in zip(asked, outputs, strict=True):
        scores[name].append(_score(loaded.tokenizer, item, output.completions[0].token_ids, data.reasons))
    return scores


def _score(tokenizer: Tokenizer, item: Item, token_ids: list[int], reasons: bool) -> AnswerScore:
    text = tokenizer.decode(token_ids, skip_special_tokens=False)
    splitter = ReasoningSplitter(starts_inside=reasons)
    content = splitter.push(text).content + splitter.flush().content
    return AnswerScore(is_right(content, item.expected), THINK_END in text, loops(token_ids), len(token_ids))


def decode_tokens_per_s(loaded: LoadedModel, prompt: Sequence[int], num_tokens: int) -> float | None:
    """Tokens a second of one stream, prefill left out: the median of three runs. ``None`` where the context has no room."""
    prompt = prompt[:SPEED_PROMPT_TOKENS]
    num_tokens = min(num_tokens + 1, loaded.engine.limits.max_context_tokens - len(prompt))
    if num_tokens < 2:
        return None
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    rates = []
    for run in range(_SPEED_RUNS):
        loaded.engine.add(f"speed-{run}", list(prompt), params)
        loaded.engine.step()  # a prompt as short as this one is read in one step
        started = time.perf_counter()
        while loaded.engine.has_work:
            if failed := loaded.engine.step().failed:
                raise failed[0].error
        rates.append((num_tokens - 1) / max(time.perf_counter() - started, 1e-9))
    return statistics.median(rates)
