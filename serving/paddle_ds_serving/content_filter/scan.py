"""Answers while they grow: text goes on only once no match can begin in it any more.

    … sent ……… │ held back │ new text
    context    └─ searched ─────────┘

A match that reaches the end of what there is may still turn out to be none (`art` of `party`), so it is decided with the next
text, at the end of the answer, or as soon as it is ``hold_back`` characters long. Longer matches may be missed.
Reviewers get blocks of twice that length, which overlap by half: a stretch of ``hold_back`` is in one before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable

from paddle_ds_serving.content_filter.rules import Stage


class _Channel:
    """Reasoning or content of one answer."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._hold = stage.hold_back if stage.patterns else 0
        #: what was sent last, and what is held back from ``_start`` on
        self._text = ""
        self._start = 0
        #: text without a match, for the reviewers: waits until it is worth a question
        self._block = ""

    def push(self, text: str, ended: bool) -> tuple[str, bool]:
        """What may be sent now, and whether the answer is to end after it."""
        clean, matched = self._search(text, ended)
        if not self._stage.reviewers:
            return clean, matched
        self._block += clean
        size = self._stage.hold_back
        is_last = ended or matched
        if not self._block or not (is_last or len(self._block) >= 2 * size):
            return "", matched
        if any(reviewer.refuses(self._stage.name, self._block) for reviewer in self._stage.reviewers):
            return "", True
        send_to = len(self._block) if is_last else len(self._block) - size  # the rest is seen again, with what follows it
        clean, self._block = self._block[:send_to], self._block[send_to:]
        return clean, matched

    def _search(self, text: str, ended: bool) -> tuple[str, bool]:
        self._text += text
        size = len(self._text)
        cut: int | None = None
        undecided = size
        for pattern in self._stage.patterns:
            match = pattern.search(self._text, self._start)
            if match is None:
                continue
            if ended or match.end() < size or size - match.start() >= self._hold:
                cut = match.start() if cut is None else min(cut, match.start())
            else:
                undecided = min(undecided, match.start())
        certain = cut if cut is not None else size if ended else max(self._start, size - self._hold)
        send_to = min(certain, undecided)
        clean = self._text[self._start : send_to]
        context = max(0, send_to - self._hold)
        self._text, self._start = self._text[context:], send_to - context
        return clean, cut is not None


class OutputFilter:
    """One answer."""

    def __init__(self, stage: Stage, on_match: Callable[[], None]) -> None:
        self._reasoning = _Channel(stage)
        self._content = _Channel(stage)
        self._on_match = on_match
        self._sent: tuple[list[str], list[str]] = ([], [])

    @property
    def reasoning_text(self) -> str:
        """The reasoning, as far as it may be seen."""
        return "".join(self._sent[0])

    @property
    def content_text(self) -> str:
        """The content, as far as it may be seen."""
        return "".join(self._sent[1])

    def push(self, reasoning: str, content: str, ended: bool) -> tuple[str, str, bool]:
        """What may be sent now of both, and whether a match ends the answer. Reasoning is over once there is content."""
        reasoning, matched = self._reasoning.push(reasoning, ended or bool(content))
        self._sent[0].append(reasoning)
        if matched:
            self._on_match()
            return reasoning, "", True
        content, matched = self._content.push(content, ended)
        self._sent[1].append(content)
        if matched:
            self._on_match()
        return reasoning, content, matched
