"""Calibration on what the model itself writes: questions in, its own answers out, reasoning included.

A reasoning model spends most of its tokens on reasoning, in a manner that no corpus has. Its own answers have the activations
that quantisation has to keep (arXiv 2504.04823 compares them with WikiText, for quantised reasoning models).
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paddle_ds.config.sampling import SamplingParams, derive_seed
from paddle_ds.errors import CalibrationError
from paddle_ds.text import Tokenizer
from paddle_ds_slim.calibration import SELF_GENERATED
from paddle_ds_slim.calibration_files import ChatSample, Sample, TokenSample

if TYPE_CHECKING:
    from paddle_ds import LLM

_QUESTIONS = Path(__file__).resolve().parent / "data" / "questions.jsonl"
#: no general model has so few tokens; the embedded one, which was taught nothing but sums, has 1,024
_SMALL_VOCABULARY_TOKENS = 4096

_FORMS = {
    "+": ("{a}+{b}", "{a} + {b} = ?", "What is {a} plus {b}?", "Calculate {a} + {b}.", "{a}加{b}等于多少？", "请计算 {a}+{b}"),
    "-": ("{a}-{b}", "{a} - {b} = ?", "What is {a} minus {b}?", "Calculate {a} - {b}.", "{a}减{b}等于多少？", "请计算 {a}-{b}"),
    "×": ("{a}*{b}", "{a} × {b} = ?", "What is {a} times {b}?", "Calculate {a} * {b}.", "{a}乘{b}等于多少？", "请计算 {a}×{b}"),
}


def self_generate(
    llm: LLM,
    questions: Sequence[str],
    count: int,
    *,
    seed: int,
    max_new_tokens: int = 512,
    temperature: float = 0.6,
    top_p: float = 0.95,
) -> list[Sample]:
    """The model's own answers as token ids: the prompt's, then the answer's exactly as they were sampled.

    The questions are asked in order, and again with other seeds where there are fewer than ``count``. A model without a
    chat template is not asked: it writes freely from its BOS. An answer ends where the model ends it, at ``max_new_tokens``
    or at the end of the context. The n-th sample depends on ``seed``, n and its question alone, not on ``count`` or the
    batch, as far as the model's products are the same in every batch: INT8's are to the bit.

    Args:
        questions: what to ask; not used for a model without a chat template.
        count: samples wanted; empty answers are dropped from them.

    Raises:
        CalibrationError: nothing to ask or to begin with, nothing random to tell repeated prompts apart, or only empty answers.
        InvalidRequest: a sampling parameter is out of range.
        PromptTooLong: a question does not fit into the context.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise CalibrationError(f"{count!r} self-generated samples asked for; expected a whole number of at least 1")
    prompts = _prompts(llm.loaded.tokenizer, questions, count)
    if temperature == 0 and len(set(map(tuple, prompts))) < count:
        raise CalibrationError(
            f"{count} self-generated samples from fewer prompts at temperature 0 would repeat each other; "
            "give a temperature above 0, or more questions"
        )
    limit = llm.loaded.engine.limits.max_context_tokens
    params = [
        SamplingParams(
            max_tokens=max(1, min(max_new_tokens, limit - len(prompt))) if max_new_tokens >= 1 else max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=derive_seed(seed, index),
        )
        for index, prompt in enumerate(prompts)
    ]
    outputs = llm.generate(prompts, params)
    samples: list[Sample] = []
    for number, output in enumerate(outputs, start=1):
        if answer := output.completions[0].token_ids:
            samples.append(TokenSample(SELF_GENERATED, f"self-generated sample {number}", (*output.prompt_ids, *answer)))
    if not samples:
        raise CalibrationError(f"all of the {count} answers that {llm.loaded.name} generated are empty; give a calibration file")
    return samples


def _prompts(tokenizer: Tokenizer, questions: Sequence[str], count: int) -> list[list[int]]:
    if tokenizer.chat_template is None:
        begins = tokenizer.bos_id if tokenizer.bos_id is not None else next(iter(tokenizer.eos_ids), None)
        if begins is None:
            raise CalibrationError(
                "the model has neither a chat template nor a token that begins a text; give a calibration file"
            )
        return [[begins]] * count
    asked = [question for question in questions if question.strip()]
    if not asked:
        raise CalibrationError("self-generated calibration has no question to ask; give at least one")
    encoded = [tokenizer.encode_chat([{"role": "user", "content": question}]) for question in asked[:count]]
    return [encoded[index % len(encoded)] for index in range(count)]


def questions_for(tokenizer: Tokenizer, count: int, *, seed: int) -> list[str]:
    """Questions that suit the model: sums for a vocabulary as small as the embedded model's, else :func:`default_questions`."""
    return arithmetic_questions(seed, count) if tokenizer.num_tokens <= _SMALL_VOCABULARY_TOKENS else default_questions()


def questions_of(samples: Sequence[Sample]) -> list[str]:
    """The first user message of every conversation: for a file of questions that the model is to answer itself.

    Raises:
        CalibrationError: there is none.
    """
    turns = [[m for m in sample.messages if m["role"] == "user"] for sample in samples if isinstance(sample, ChatSample)]
    questions = [str(user[0]["content"]) for user in turns if user]
    if not questions:
        where = samples[0].source if samples else "the samples"
        raise CalibrationError(
            f"{where}: holds no question to ask the model; expected objects with question, prompt, turns or messages"
        )
    return questions


def default_questions() -> list[str]:
    """Arithmetic, logic, code and general knowledge in turn, in English and Chinese."""
    lines = _QUESTIONS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def arithmetic_questions(seed: int, count: int) -> list[str]:
    """``count`` different questions about one sum each, of the kinds that the embedded model was taught.

    Sums that are kept out of its training for evaluation are left out here, too: a model should not be measured on what it
    was calibrated on.
    """
    rng = random.Random(seed)
    drawn = _draw_questions(rng)
    questions: dict[str, None] = {}
    while len(questions) < count:
        questions[next(drawn)] = None
    return list(questions)


def _draw_questions(rng: random.Random) -> Iterator[str]:
    def below(limit: int) -> int:
        return int(rng.random() * limit)  # random() is the one method whose numbers Python promises to keep

    while True:
        op = "+-×"[below(3)]
        if op == "×":
            a, b = (below(13), below(13)) if below(2) else (13 + below(87), below(10))
        else:
            a, b = below((100, 1000)[below(2)]), below((100, 1000)[below(2)])
        form = _FORMS[op][below(len(_FORMS[op]))]
        if not _is_held_out(op, a, b):
            yield form.format(a=a, b=b)


def _is_held_out(op: str, a: int, b: int) -> bool:
    """The rule of ``tools/tiny_r1/corpus.py``: one sum in twenty by its checksum, none of the tables."""
    is_fact = max(a, b) <= (12 if op == "×" else 9)
    return not is_fact and zlib.crc32(f"{op}{a},{b}".encode()) % 20 == 0


__all__ = ["arithmetic_questions", "default_questions", "questions_for", "questions_of", "self_generate"]
