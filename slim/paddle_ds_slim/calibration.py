"""Calibration samples to token sequences, the same ones for the same seed on every machine.

    samples ──seed──▶ order ──▶ token ids ──▶ sequences of at most ``sequence_tokens``

    conversation         rendered by the chat template   [bos system user … answer]        one sequence, cut at its end
    own answer           ids as they were generated      [bos question answer]             one sequence, cut at its end
    long text            a stretch of it                 [bos w w w w w w w w w w w w w w] one sequence
    short texts          of one source, packed           [bos w w w w bos w w bos w w w w] one sequence for several

Every sequence begins as the tokenizer begins a text: the first token collects attention, and a model sees other activations
without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paddle_ds.errors import CalibrationError, ConfigError, PaddleDSError
from paddle_ds.logs import fields
from paddle_ds.text import ChatTemplate, Tokenizer, starts_inside_reasoning
from paddle_ds.text.reasoning import THINK_END, THINK_START
from paddle_ds_slim.calibration_files import ChatSample, Message, Sample, TextSample, TokenSample, read_samples

logger = logging.getLogger(__name__)

#: with fewer tokens the statistics mean nothing: GPTQ made a model worse than rounding did, from 8 tokens
MIN_TOKENS = 256
SELF_GENERATED = "self-generated"

#: characters of a stretch for each token of a sequence: so long that it nearly always fills one, in English as in code
_STRETCH_CHARS_PER_TOKEN = 8


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """How much to calibrate on, and which part of the samples.

    Attributes:
        num_sequences: sequences wanted; there are fewer where the samples do not give as many.
        sequence_tokens: most tokens of a sequence. The caller keeps it within the model's context.
        seed: picks samples and stretches.

    Raises:
        ConfigError: a value is out of range, or all sequences together are shorter than ``MIN_TOKENS``.
    """

    num_sequences: int = 32
    sequence_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_sequences", 1), ("sequence_tokens", 16), ("seed", None)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
                at_least = "" if least is None else f" of at least {least}"
                raise ConfigError(f"calibration: {name} is {value!r}; expected a whole number{at_least}")
        if self.num_sequences * self.sequence_tokens < MIN_TOKENS:
            raise ConfigError(
                f"calibration: {self.num_sequences} sequences of {self.sequence_tokens} tokens are "
                f"{self.num_sequences * self.sequence_tokens} tokens; at least {MIN_TOKENS} are needed"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Token ids to calibrate on.

    Attributes:
        token_ids: one int64 array ``[tokens]`` a sequence, 1 to ``config.sequence_tokens`` tokens each.
        num_tokens: of all sequences.
        source: names of the files, or ``self-generated``; several are joined by commas.
        sha256: of the sequences in order: for each its length, then its ids, all as little-endian int64.
        config: what was asked for.
    """

    token_ids: list[npt.NDArray[np.int64]]
    num_tokens: int
    source: str
    sha256: str
    config: CalibrationConfig

    @property
    def num_sequences(self) -> int:
        """Sequences there are; ``config.num_sequences`` were asked for."""
        return len(self.token_ids)

    def record(self) -> dict[str, Any]:
        """What a manifest or passport keeps of it."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "num_sequences": self.num_sequences,
            "num_sequences_asked": self.config.num_sequences,
            "num_tokens": self.num_tokens,
            "sequence_tokens": self.config.sequence_tokens,
            "seed": self.config.seed,
        }


def calibration_set(tokenizer: Tokenizer, samples: Sequence[Sample], config: CalibrationConfig) -> CalibrationSet:
    """Choose among the samples by ``config.seed``, turn them into ids and fill sequences.

    Conversations go through the chat template, each into a sequence of its own; where the tokenizer has no template, their
    texts are joined by line breaks. Long texts give one stretch each, chosen by the seed, before any of them gives a second one.
    Where the samples run out earlier, there are fewer sequences than asked for; a warning and ``record()`` say so.

    Raises:
        CalibrationError: the template refuses a conversation, ids are of another tokenizer, or there are fewer than
            ``MIN_TOKENS`` tokens.
    """
    stretches = [stretch for sample in samples for stretch in _stretches(sample, config.sequence_tokens)]
    rng = random.Random(config.seed)
    keys = [rng.random() for _ in stretches]  # random() is the one method whose numbers Python promises to keep
    filler = _Filler(_prefix(tokenizer), config)
    for index in sorted(range(len(stretches)), key=keys.__getitem__):
        if filler.is_full:
            break
        filler.add(stretches[index], _encode(tokenizer, stretches[index]))
    sequences = [np.asarray(ids, dtype=np.int64) for ids in filler.finish()]
    num_tokens = sum(map(len, sequences))
    source = ", ".join(sorted({sample.source for sample in samples}))
    if num_tokens < MIN_TOKENS:
        raise _too_few(num_tokens, len(sequences), source, config)
    if len(sequences) < config.num_sequences:
        counts = fields(source=source, asked=config.num_sequences, got=len(sequences), tokens=num_tokens)
        logger.warning("calibration.fewer_sequences", extra=counts)
    return CalibrationSet(sequences, num_tokens, source, _sha256(sequences), config)


def _too_few(num_tokens: int, num_sequences: int, source: str, config: CalibrationConfig) -> CalibrationError:
    found = (
        f"{source or 'no sample at all'}: {num_tokens} tokens found; at least {MIN_TOKENS} are needed, and thousands are better"
    )
    if num_sequences == config.num_sequences:
        cure = f"the samples are short: ask for more than {num_sequences} sequences of them"
    elif source == SELF_GENERATED:
        cure = "let the model write more answers: raise --calib-self-generate"
    else:
        cure = "give a longer text, or let the model write its own: --calib-self-generate 32"
    return CalibrationError(f"{found}. {cure[0].upper()}{cure[1:]}")


def _stretches(sample: Sample, sequence_tokens: int) -> Iterator[Sample]:
    """A text in pieces that fill a sequence each, cut where a line or a word ends; other samples as they are."""
    if not isinstance(sample, TextSample):
        yield sample
        return
    limit = sequence_tokens * _STRETCH_CHARS_PER_TOKEN
    text, start = sample.text, 0
    while start < len(text):
        end = min(start + limit, len(text))
        if end < len(text):
            cuts = (text.rfind(mark, start + limit // 2, end) for mark in "\n ")
            end = next((cut + 1 for cut in cuts if cut >= 0), end)
        if piece := text[start:end].strip():
            yield dataclasses.replace(sample, text=piece)
        start = end


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text: BOS, or nothing."""
    opened_by = tokenizer.encode("x")[:1]
    return opened_by if opened_by == [tokenizer.bos_id] else []


def _encode(tokenizer: Tokenizer, sample: Sample) -> list[int]:
    try:
        if isinstance(sample, TextSample):
            return tokenizer.encode(sample.text)
        if isinstance(sample, ChatSample):
            if tokenizer.chat_template is None:
                return tokenizer.encode("\n".join(str(message["content"]) for message in sample.messages if message["content"]))
            return tokenizer.encode(_render(tokenizer.chat_template, sample.messages), add_special_tokens=False)
    except PaddleDSError as error:
        raise CalibrationError(f"{sample.where}: {error.message}") from error
    assert isinstance(sample, TokenSample), type(sample)
    for token_id in sample.token_ids:
        if not 0 <= token_id < tokenizer.num_tokens:
            raise CalibrationError(
                f"{sample.where}: token id {token_id} is of another tokenizer; this one has ids 0 to {tokenizer.num_tokens - 1}"
            )
    return list(sample.token_ids)


def _render(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """A conversation as the model sees it; one that ends in a question ends in what opens the answer, as when it is served.

    Templates of reasoning models take the reasoning out of every answer, since earlier turns are sent without it. In the last
    answer it is what the model itself would have written, so that answer is put behind its prompt by hand.
    """
    answer: str | None = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    if len(messages) < 2 or answer is None or THINK_END not in answer:
        return template.render(messages, add_generation_prompt=messages[-1]["role"] != "assistant")
    prompt = template.render(messages[:-1])
    if starts_inside_reasoning(prompt):
        answer = answer.lstrip().removeprefix(THINK_START).lstrip("\n")
    return prompt + answer


class _Filler:
    """Fills sequences until there are as many as asked for."""

    def __init__(self, prefix: list[int], config: CalibrationConfig) -> None:
        self._prefix = prefix
        self._tokens = config.sequence_tokens
        self._wanted = config.num_sequences
        self._sequences: list[list[int]] = []
        #: source -> the sequence that its short texts are being packed into
        self._open: dict[str, list[int]] = {}
        #: what texts hold beyond their first sequence: used when every text has given one
        self._later: list[tuple[str, list[int]]] = []

    @property
    def is_full(self) -> bool:
        return len(self._sequences) >= self._wanted

    def add(self, sample: Sample, ids: list[int]) -> None:
        if isinstance(sample, TextSample):
            if len(ids) > len(self._prefix):  # else none of its characters is in the vocabulary
                first, *rest = self._windows(ids)
                self._take(sample.source, first)
                self._later += [(sample.source, window) for window in rest]
        elif ids:
            self._sequences.append(ids[: self._tokens])

    def finish(self) -> list[list[int]]:
        """The sequences; what is left over makes the last, shorter ones."""
        for source, window in self._later:
            if self.is_full:
                break
            self._take(source, window)
        for ids in self._open.values():
            if not self.is_full and len(ids) > len(self._prefix):
                self._sequences.append(ids)
        return self._sequences

    def _windows(self, ids: list[int]) -> list[list[int]]:
        step = self._tokens - len(self._prefix)
        rest = range(self._tokens, len(ids), step)
        return [ids[: self._tokens], *(self._prefix + ids[start : start + step] for start in rest)]

    def _take(self, source: str, window: list[int]) -> None:
        if len(window) == self._tokens:
            self._sequences.append(window)
            return
        packed = self._open.pop(source, []) + window
        if len(packed) >= self._tokens:
            self._sequences.append(packed[: self._tokens])
            rest = packed[self._tokens :]
            packed = self._prefix + rest if rest else []
        self._open[source] = packed


def _sha256(sequences: Sequence[npt.NDArray[np.int64]]) -> str:
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes())
    return digest.hexdigest()


__all__ = [
    "MIN_TOKENS",
    "SELF_GENERATED",
    "CalibrationConfig",
    "CalibrationSet",
    "ChatSample",
    "Sample",
    "TextSample",
    "TokenSample",
    "calibration_set",
    "read_samples",
]
