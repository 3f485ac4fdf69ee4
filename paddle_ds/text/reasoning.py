"""What a reasoning model thinks, apart from what it answers.

    BEFORE ──<think>──▶ OPENING ──text──▶ INSIDE ──</think>──▶ CLOSING ──text──▶ CONTENT
      └──────────────────────────── any other text ─────────────────────────────▶

R1's template ends the prompt with ``<think>\\n``, so its answers start in OPENING; with other templates the model
writes the tag itself and they start in BEFORE. The first ``</think>`` closes; every tag after it is plain content (a
code block may hold one). Blank lines after either tag and white space before ``</think>`` belong to nobody and are
dropped; they are held back while it is open whether the tag follows.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Literal, get_args

from paddle_ds.errors import UnsupportedError

ReasoningMode = Literal["deepseek", "none", "deepseek-legacy"]

THINK_START = "<think>"
THINK_END = "</think>"
_SPACE = " \t\r\n"
_ASSISTANT_MARKERS = (
    "<｜Assistant｜>",
    "<|im_start|>assistant",
    "<|start_header_id|>assistant<|end_header_id|>",
    "<start_of_turn>model",
    "[/INST]",
)


def starts_inside_reasoning(prompt_text: str) -> bool:
    """Whether an answer to this rendered prompt starts inside an open ``<think>``.

    Only what follows the last assistant marker counts: tags in earlier turns say nothing about this one. A prompt
    without a known marker has to end with the tag.
    """
    ends = [prompt_text.rfind(marker) + len(marker) for marker in _ASSISTANT_MARKERS if marker in prompt_text]
    if not ends:
        return prompt_text.rstrip(_SPACE).endswith(THINK_START)
    turn = prompt_text[max(ends) :]
    return turn.lstrip(_SPACE).startswith(THINK_START) and THINK_END not in turn


@dataclasses.dataclass(frozen=True, slots=True)
class SplitText:
    """The next piece of each of the two texts."""

    reasoning: str = ""
    content: str = ""


_NOTHING = SplitText()


class _State(enum.Enum):
    BEFORE = "before"
    OPENING = "opening"
    INSIDE = "inside"
    CLOSING = "closing"
    CONTENT = "content"


class ReasoningSplitter:
    """Splits one answer, piece by piece.

    Args:
        starts_inside: the prompt left a ``<think>`` open (:func:`starts_inside_reasoning`).
        mode: ``deepseek`` splits; ``none`` gives everything as content, untouched; ``deepseek-legacy`` gives the
            reasoning and, as content, the whole text with its tags (llama.cpp's ``reasoning_format``). A tag that the
            prompt opened is then written into the content, so that it is complete.

    Raises:
        UnsupportedError: another mode.
    """

    def __init__(self, starts_inside: bool, mode: ReasoningMode = "deepseek") -> None:
        if mode not in get_args(ReasoningMode):
            raise UnsupportedError(f"reasoning mode {mode!r}; have: {', '.join(get_args(ReasoningMode))}")
        self._mode = mode
        self._state = _State.OPENING if starts_inside else _State.BEFORE
        self._held: list[str] = []
        self._held_is_space = False
        self._may_reopen = starts_inside  # some models repeat the tag that the prompt already holds
        self._legacy_prefix = THINK_START + "\n" if starts_inside else ""
        self._legacy_held = ""

    @property
    def inside(self) -> bool:
        """The text so far ends within the reasoning."""
        return self._state in (_State.OPENING, _State.INSIDE)

    def push(self, text: str) -> SplitText:
        """Take the next piece of the answer; what is undecided stays back."""
        if self._mode == "none":
            self._advance(text)  # the state is followed all the same: reasoning tokens are counted in every mode
            return SplitText("", text)
        split = self._advance(text)
        return split if self._mode == "deepseek" else SplitText(split.reasoning, self._legacy_content(text))

    def flush(self) -> SplitText:
        """What was held back, once nothing follows."""
        held, self._held = "".join(self._held), []
        if self._mode == "none":
            return SplitText()
        if self._state in (_State.OPENING, _State.CLOSING):
            held = held.lstrip(_SPACE)
        split = SplitText(held, "") if self.inside else SplitText("", held)
        if self._mode == "deepseek":
            return split
        content, self._legacy_held = self._legacy_held, ""
        return SplitText(split.reasoning, self._legacy_prefix + content if content else "")

    def _legacy_content(self, text: str) -> str:
        """The whole text, as soon as it is known whether the model repeated the prompt's tag."""
        if not self._legacy_prefix:
            return text
        self._legacy_held += text
        start = self._legacy_held.lstrip(_SPACE)
        if len(start) < len(THINK_START) and THINK_START.startswith(start):
            return ""
        content, self._legacy_held = self._legacy_held, ""
        prefix, self._legacy_prefix = self._legacy_prefix, ""
        return content if start.startswith(THINK_START) else prefix + content

    def _advance(self, text: str) -> SplitText:
        """Run the states over what was held and the new text, until the rest is undecided or spent."""
        before = self._state
        if before is _State.CONTENT:
            return SplitText("", text)
        if self._held_is_space and not text.strip(_SPACE):  # a model stuck in blank lines must not cost more and more
            self._held.append(text)
            return _NOTHING
        reasoning: list[str] = []
        buffer = "".join(self._held) + text
        self._held.clear()
        while buffer:
            before = self._state
            if before is _State.BEFORE:
                buffer = self._before(buffer)
            elif before is _State.INSIDE:
                piece, buffer = self._inside(buffer)
                reasoning.append(piece)
            elif before is _State.CONTENT:
                return SplitText("".join(reasoning), buffer)
            else:
                buffer = self._after_tag(buffer)
            if self._state is before:
                self._held.append(buffer)
                break
        self._held_is_space = bool(self._held) and not self._held[0].strip(_SPACE)
        return SplitText("".join(reasoning), "")

    def _before(self, buffer: str) -> str:
        """Does the answer open with the tag?"""
        start = buffer.lstrip(_SPACE)
        if start.startswith(THINK_START):
            self._state = _State.OPENING
            return start[len(THINK_START) :]
        if not THINK_START.startswith(start):
            self._state = _State.CONTENT
        return buffer

    def _after_tag(self, buffer: str) -> str:
        """Drop blank lines after a tag; keep the indentation of the first line that has text."""
        start = buffer.lstrip(_SPACE)
        if self._state is _State.OPENING and self._may_reopen:
            if start.startswith(THINK_START):
                self._may_reopen = False
                return self._after_tag(start[len(THINK_START) :])
            if THINK_START.startswith(start):
                return buffer
        if not start:
            return buffer
        num_space = len(buffer) - len(start)
        self._state = _State.INSIDE if self._state is _State.OPENING else _State.CONTENT
        return buffer[buffer.rfind("\n", 0, num_space) + 1 :]

    def _inside(self, buffer: str) -> tuple[str, str]:
        """Reasoning that is certain, and the rest: white space and a partial tag, or what follows the tag."""
        end = buffer.find(THINK_END)
        if end >= 0:
            self._state = _State.CLOSING
            return buffer[:end].rstrip(_SPACE), buffer[end + len(THINK_END) :]
        tag = buffer.rfind(THINK_END[0], -len(THINK_END))
        num_tag = len(buffer) - tag if tag >= 0 and THINK_END.startswith(buffer[tag:]) else 0
        certain = buffer[: len(buffer) - num_tag].rstrip(_SPACE)
        return certain, buffer[len(certain) :]
