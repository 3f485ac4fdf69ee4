"""One answer's tokens to text: detokenize, stop strings, reasoning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.text.detokenizer import IncrementalDetokenizer
from paddle_ds.text.reasoning import THINK_END, THINK_START, ReasoningSplitter, SplitText
from paddle_ds.text.stop import StopChecker
from paddle_ds.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class TextDelta:
    """What one push added, and whether a stop string ended the answer."""

    reasoning: str = ""
    content: str = ""
    stopped: bool = False
    matched_stop: str | None = None


class TextStream:
    """Text of one answer while its tokens arrive.

        token ids ─▶ IncrementalDetokenizer ─▶ StopChecker ─▶ ReasoningSplitter ─▶ reasoning, content

    Stop strings are looked for in the raw text, so in the reasoning too. After a stop nothing more comes out, and
    tokens after the one that completed the stop string are not counted.

    Args:
        tokenizer: the tokenizer the ids belong to.
        params: the request's stop strings, ``min_tokens`` and ``skip_special_tokens``.
        prompt_ids: what the answer continues.
        reasoning: how to split off the reasoning; without it everything is content. The think tags reach it also
            where a tokenizer marks them special.

    Attributes:
        reasoning_text: all reasoning so far.
        content_text: all content so far.
        num_tokens: tokens taken so far.
        num_reasoning_tokens: those of them that belong to the reasoning, its closing tag included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        prompt_ids: Sequence[int] = (),
        reasoning: ReasoningSplitter | None = None,
    ) -> None:
        tags = (tokenizer.token_id(tag) for tag in (THINK_START, THINK_END)) if reasoning else ()
        keep_ids = frozenset(tag for tag in tags if tag is not None)
        self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens, prompt_ids, keep_ids=keep_ids)
        self._stop = StopChecker(params.stop, params.include_stop_str_in_output, params.min_tokens)
        self._splitter = reasoning
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._ended = False
        self.num_tokens = 0
        self.num_reasoning_tokens = 0

    @property
    def reasoning_text(self) -> str:
        return _joined(self._reasoning)

    @property
    def content_text(self) -> str:
        return _joined(self._content)

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Take the next tokens; gives the text that is certain now."""
        deltas: list[SplitText] = []
        matched: str | None = None
        for token_id in token_ids:
            if self._ended:
                break
            self.num_tokens += 1
            result = self._stop.push(self._detokenizer.push((token_id,)), self.num_tokens)
            was_inside = self._is_inside()
            if result.text:
                deltas.append(self._split(result.text))
            self.num_reasoning_tokens += was_inside or self._is_inside()
            if result.stopped:
                matched, self._ended = result.matched, True
                deltas.append(self._split_rest())
        return self._emit(deltas, matched)

    def finish(self, stop_token_id: int | None = None) -> TextDelta:
        """The rest, once the engine says that the answer is over.

        Args:
            stop_token_id: the token that ended it, where it was not pushed: it is counted and its text left out.
        """
        if self._ended:
            return TextDelta()
        self._ended = True
        if stop_token_id is not None:
            self.num_tokens += 1
        result = self._stop.push(self._detokenizer.flush(), self.num_tokens)
        deltas = [self._split(result.text), self._split(self._stop.flush()), self._split_rest()]
        return self._emit(deltas, result.matched)

    def _is_inside(self) -> bool:
        return self._splitter is not None and self._splitter.inside

    def _split(self, text: str) -> SplitText:
        return self._splitter.push(text) if self._splitter is not None else SplitText("", text)

    def _split_rest(self) -> SplitText:
        return self._splitter.flush() if self._splitter is not None else SplitText()

    def _emit(self, deltas: list[SplitText], matched: str | None) -> TextDelta:
        reasoning = "".join([delta.reasoning for delta in deltas])
        content = "".join([delta.content for delta in deltas])
        if reasoning:
            self._reasoning.append(reasoning)
        if content:
            self._content.append(content)
        return TextDelta(reasoning, content, matched is not None, matched)


def _joined(parts: list[str]) -> str:
    """Join the pieces in place, so that asking again costs nothing."""
    if len(parts) > 1:
        parts[:] = ["".join(parts)]
    return parts[0] if parts else ""
