"""Texts and questions as token ids, the same ones for both models.

file ──▶ documents ──▶ [bos w w w w w w w]  windows, in order, until there are as many tokens as asked for
                       [bos w w w w]
file ──▶ question, answer ──▶ [bos user question assistant think]  and the answer that is expected
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from paddle_ds.errors import CalibrationError
from paddle_ds.text import Tokenizer, starts_inside_reasoning
from paddle_ds_slim.calibration_files import ChatSample, TextSample, read_samples
from paddle_ds_slim.passport.config import EvalConfig, Text
from paddle_ds_slim.passport.grading import expected_answer
from paddle_ds_slim.self_generated import questions_for

Ids = tuple[int, ...]

BUILT_IN = "built-in"
#: sums of the kinds that the embedded model was taught, most of them kept out of its training
ARITHMETIC = Path(__file__).resolve().parent / "data" / "arithmetic.jsonl"

#: so many characters surely give one token each; the rest of a document is not looked at
_CHARS_PER_TOKEN = 16
#: beginnings of texts that are continued greedily
_PROMPT_TOKENS, _MIN_PROMPT_TOKENS = 16, 4


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens that are read in one go. Those from ``start`` on are predicted, the ones before are read only."""

    ids: Ids
    start: int = 1

    @property
    def num_predicted(self) -> int:
        return len(self.ids) - self.start


@dataclasses.dataclass(frozen=True)
class TextData:
    """Pieces of a text.

    Attributes:
        source: name of the file, ``token ids`` or ``self-generated``.
    """

    source: str
    pieces: tuple[Piece, ...]

    @property
    def num_predicted(self) -> int:
        return sum(piece.num_predicted for piece in self.pieces)


@dataclasses.dataclass(frozen=True)
class Item:
    """A question."""

    prompt: Ids
    expected: str


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Questions with answers."""

    source: str
    items: tuple[Item, ...]


@dataclasses.dataclass(frozen=True)
class EvalData:
    """Everything both models get to read.

    Attributes:
        prompts: what is continued greedily.
        reasons: whether prompts of the tasks end inside an open ``<think>``.
    """

    texts: dict[str, TextData]
    tasks: dict[str, TaskData]
    prompts: tuple[Ids, ...]
    reasons: bool

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt; 0 where there is none."""
        prompts = [*self.prompts, *(item.prompt for task in self.tasks.values() for item in task.items)]
        return max(map(len, prompts), default=0)

    def longest_piece(self) -> int:
        return max((len(piece.ids) for text in self.texts.values() for piece in text.pieces), default=0)


def texts_of(tokenizer: Tokenizer, config: EvalConfig, context_tokens: int) -> dict[str, TextData]:
    """The texts of ``config``, cut into pieces of at most ``config.window_tokens`` (and the model's context).

    Raises:
        CalibrationError: a file is damaged or holds no running text, or ids are of another tokenizer.
    """
    window = min(config.window_tokens, context_tokens)
    made: dict[str, TextData] = {}
    for name, text in (config.texts or {}).items():
        documents, source = _documents(tokenizer, name, text, config.max_tokens_per_text)
        pieces = cut(documents, window, config.max_tokens_per_text, tokenizer.bos_id)
        if not pieces:
            raise CalibrationError(f"text {name!r} ({source}): has fewer than two tokens, so there is nothing to predict")
        made[name] = TextData(source, pieces)
    return made


def cut(documents: Iterable[Sequence[int]], window: int, max_predicted: int, bos_id: int | None) -> tuple[Piece, ...]:
    """Pieces of at most ``window`` tokens, each opened as its document is, until ``max_predicted`` tokens are predicted."""
    pieces: list[Piece] = []
    room = max_predicted
    for document in documents:
        opening = [bos_id] if bos_id is not None and list(document[:1]) == [bos_id] else []
        rest = list(document[len(opening) :])
        while rest and room > 0:
            size = min(window - len(opening), room + 1 - len(opening))
            piece, rest = Piece((*opening, *rest[:size])), rest[size:]
            if piece.num_predicted:
                pieces.append(piece)
                room -= piece.num_predicted
        if room <= 0:
            break
    return tuple(pieces)


def answers_of(written: Iterable[Ids], prompts: Iterable[Ids], window: int, max_predicted: int) -> tuple[Piece, ...]:
    """One piece for each text that begins with one of ``prompts``; what stands behind the prompt is predicted."""
    longest_first = sorted(set(prompts), key=len, reverse=True)
    pieces: list[Piece] = []
    room = max_predicted
    for ids in written:
        start = next(len(prompt) for prompt in longest_first if ids[: len(prompt)] == prompt)
        piece = Piece(ids[: min(window, start + room)], start)
        if piece.num_predicted > 0:
            pieces.append(piece)
            room -= piece.num_predicted
    return tuple(pieces)


def _documents(tokenizer: Tokenizer, name: str, text: Text, max_tokens: int) -> tuple[Iterator[Sequence[int]], str]:
    if isinstance(text, Path):
        return _encoded(tokenizer, text, max_tokens), text.name
    documents: list[Sequence[int]] = [text] if text and isinstance(text[0], int) else list(text)  # type: ignore[list-item, arg-type]
    for document in documents:
        if not all(0 <= token_id < tokenizer.num_tokens for token_id in document):
            raise CalibrationError(f"text {name!r} holds ids of another tokenizer; this one has 0 to {tokenizer.num_tokens - 1}")
    return iter(documents), "token ids"


def _encoded(tokenizer: Tokenizer, path: Path, max_tokens: int) -> Iterator[Sequence[int]]:
    for sample in read_samples(path):
        if not isinstance(sample, TextSample):
            raise CalibrationError(f"{sample.where}: is a conversation; perplexity is measured on running text")
        yield tokenizer.encode(sample.text[: max_tokens * _CHARS_PER_TOKEN])


def tasks_of(tokenizer: Tokenizer, config: EvalConfig) -> dict[str, TaskData]:
    """The tasks of ``config``; small sums where it names none and the model has a chat template.

    Raises:
        CalibrationError: a file is damaged, or holds something else than questions with answers.
    """
    if config.tasks is None:
        if tokenizer.chat_template is None:
            return {}
        return {"arithmetic": TaskData(BUILT_IN, _items(tokenizer, ARITHMETIC, config))}
    return {name: TaskData(path.name, _items(tokenizer, path, config)) for name, path in config.tasks.items()}


def _items(tokenizer: Tokenizer, path: Path, config: EvalConfig) -> tuple[Item, ...]:
    pairs: list[tuple[str, str]] = []
    for sample in read_samples(path):
        messages = sample.messages if isinstance(sample, ChatSample) else ()
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise CalibrationError(f'{sample.where}: expected one "question" with one "answer", both of them strings')
        expected = expected_answer(messages[1]["content"])
        if not expected:
            raise CalibrationError(f"{sample.where}: nothing stands behind the '####' of its answer")
        pairs.append((messages[0]["content"], expected))
    rng = random.Random(config.seed)
    keys = [rng.random() for _ in pairs]  # random() is the one method whose numbers Python promises to keep
    picked = sorted(sorted(range(len(pairs)), key=keys.__getitem__)[: config.task_limit])
    return tuple(Item(question_ids(tokenizer, pairs[index][0]), pairs[index][1]) for index in picked)


def question_ids(tokenizer: Tokenizer, question: str) -> Ids:
    """A question as one user turn; as plain text where the model has no chat template."""
    if tokenizer.chat_template is None:
        return tuple(tokenizer.encode(question))
    return tuple(tokenizer.encode_chat([{"role": "user", "content": question}]))


def greedy_prompts(tokenizer: Tokenizer, config: EvalConfig, texts: dict[str, TextData]) -> tuple[Ids, ...]:
    """Questions where the model has a chat template, else beginnings of pieces of the texts."""
    if config.greedy_prompts == 0:
        return ()
    if tokenizer.chat_template is not None:
        asked = questions_for(tokenizer, config.greedy_prompts, seed=config.seed)[: config.greedy_prompts]
        return tuple(question_ids(tokenizer, question) for question in asked)
    pieces = [piece for text in texts.values() for piece in text.pieces]
    starts = [p.ids[start : start + _PROMPT_TOKENS] for p in pieces for start in range(0, len(p.ids), _PROMPT_TOKENS)]
    usable = [start for start in starts if len(start) >= _MIN_PROMPT_TOKENS] or starts[:1]
    step = max(1, len(usable) // config.greedy_prompts)
    return tuple(usable[::step][: config.greedy_prompts])


def reasons(tokenizer: Tokenizer) -> bool:
    """Whether prompts of this model end inside an open ``<think>``."""
    template = tokenizer.chat_template
    return template is not None and starts_inside_reasoning(template.render([{"role": "user", "content": "1+1"}]))


def digest(sequences: Sequence[Sequence[int]], *texts: str) -> str:
    """sha256 of each sequence's length and its ids, as little-endian int64, then of each text's UTF-8 bytes and a NUL."""
    found = hashlib.sha256()
    for ids in sequences:
        found.update(len(ids).to_bytes(8, "little") + np.asarray(ids, "<i8").tobytes())
    for text in texts:
        found.update(text.encode() + b"\0")
    return found.hexdigest()
