"""One answer while it grows: tokens in, pieces of text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from paddle_ds.ipc.messages import Delta, Finished, Submit, TokenLogprob, Usage
from paddle_ds.text import ReasoningSplitter, TextStream, Tokenizer
from paddle_ds_serving.content_filter.scan import OutputFilter
from paddle_ds_serving.prompts import Prompt
from paddle_ds_serving.protocol.chat import ReasoningFormat


@dataclasses.dataclass(frozen=True)
class Piece:
    """What the client may see next of one answer."""

    index: int
    reasoning: str
    content: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: str | None


class Choice:
    """Text, tokens and log probabilities of one answer, and how it ended.

    ``take`` gives what arrived since the last ``take`` as one :class:`Piece`, so that a slow client gets fewer and longer
    pieces instead of a growing queue. With a filter, tokens and log probabilities are told at the end only, as they would
    tell text that is held back; they are forgotten where the filter ends the answer.
    """

    def __init__(
        self,
        index: int,
        submit: Submit,
        prompt: Prompt,
        tokenizer: Tokenizer,
        reasoning_format: ReasoningFormat | None,
        output_filter: OutputFilter | None = None,
    ) -> None:
        self.index = index
        self.submit = submit
        self.request_id = submit.request_id
        self.prompt = prompt
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        #: the token that ended the answer, where the engine says that one did; not among ``token_ids``
        self.stop_token_id: int | None = None
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        splitter = None if reasoning_format is None else ReasoningSplitter(prompt.inside_reasoning, reasoning_format)
        self.text = TextStream(tokenizer, submit.params, prompt_ids=prompt.ids, reasoning=splitter)
        self._filter = output_filter
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._num_taken = 0
        self._end_taken = False

    @property
    def num_output_tokens(self) -> int:
        """Tokens the client pays for: as the engine says, or up to the stop string that was found here."""
        return self.usage.num_output_tokens if self.usage is not None else self.text.num_tokens

    @property
    def reasoning_text(self) -> str:
        """The reasoning that the client may see."""
        return self.text.reasoning_text if self._filter is None else self._filter.reasoning_text

    @property
    def content_text(self) -> str:
        """The content that the client may see."""
        return self.text.content_text if self._filter is None else self._filter.content_text

    def push(self, delta: Delta) -> bool:
        """Take new tokens. True where a stop string or the filter ended the answer, so that the engine must be told."""
        if self.finish_reason is not None:
            return False  # tokens that were on their way when a stop string was found
        text = self.text.push(delta.token_ids)
        num_used = self.text.num_tokens - len(self.token_ids)
        self.token_ids.extend(delta.token_ids[:num_used])
        self.logprobs.extend((delta.logprobs or [])[:num_used])
        filtered = self._add(text.reasoning, text.content, ended=text.stopped)
        if filtered or text.stopped:
            self.finish_reason = "content_filter" if filtered else "stop"
        return filtered or text.stopped

    def finish(self, end: Finished) -> None:
        """Take the engine's word that the answer is complete."""
        if self.finish_reason is not None:
            return
        text = self.text.finish(end.stop_token_id)
        filtered = self._add(text.reasoning, text.content, ended=True)
        self.finish_reason = "content_filter" if filtered else "stop" if text.stopped else end.reason
        self.usage = end.usage
        self.stop_token_id = end.stop_token_id

    def take(self) -> Piece | None:
        """What is new, or ``None``: tokens whose text is held back wait for it, unless the answer ended."""
        ended = self.finish_reason is not None and not self._end_taken
        if not (self._reasoning or self._content or ended):
            return None
        start = self._num_taken
        if self._filter is None or ended:
            self._num_taken = len(self.token_ids)
        piece = Piece(
            self.index,
            "".join(self._reasoning),
            "".join(self._content),
            self.token_ids[start : self._num_taken],
            self.logprobs[start : self._num_taken],
            self.finish_reason if ended else None,
        )
        self._reasoning.clear()
        self._content.clear()
        self._end_taken = self._end_taken or ended
        return piece

    def _add(self, reasoning: str, content: str, *, ended: bool) -> bool:
        filtered = False
        if self._filter is not None:
            reasoning, content, filtered = self._filter.push(reasoning, content, ended)
        if filtered:
            self.token_ids.clear()
            self.logprobs.clear()
        if reasoning:
            self._reasoning.append(reasoning)
        if content:
            self._content.append(content)
        return filtered


def total_tokens(choices: Sequence[Choice]) -> int:
    """Output tokens of several answers."""
    return sum(choice.num_output_tokens for choice in choices)
