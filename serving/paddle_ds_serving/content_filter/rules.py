"""The file with the rules, read and compiled.

hold_back: 256           # characters; see ``scan``
input:                   # what is asked
  words: [one, two words]
  patterns: ['\\d{4}-\\d{4}']
  reviewers: [name]      # entry points of the group paddle_ds.content_filters
output: {…}              # what is answered
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from paddle_ds.errors import ConfigError, InternalError
from paddle_ds_serving.content_filter.words import words_pattern

GROUP = "paddle_ds.content_filters"
MAX_WORD_CHARACTERS = 100
MAX_HOLD_BACK = 4096

StageName = Literal["input", "output"]
#: stage and text -> whether the text is refused
Review = Callable[[StageName, str], bool]


class _StageFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    words: list[str] = []
    patterns: list[str] = []
    reviewers: list[str] = []


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hold_back: int = 256
    input: _StageFile = _StageFile()
    output: _StageFile = _StageFile()


@dataclasses.dataclass(frozen=True)
class Reviewer:
    """Somebody else's code that judges text."""

    name: str
    review: Review

    def refuses(self, stage: StageName, text: str) -> bool:
        """Ask it.

        Raises:
            InternalError: it failed. Nothing of the text, nor of what the reviewer said, is told.
        """
        try:
            verdict = self.review(stage, text)
        except Exception as error:
            raise InternalError(f"the content filter {self.name!r} failed: {type(error).__name__}") from None
        if not isinstance(verdict, bool):
            raise InternalError(f"the content filter {self.name!r} answered {type(verdict).__name__}, not true or false")
        return verdict


@dataclasses.dataclass(frozen=True)
class Stage:
    """The rules of one stage. A match of up to ``hold_back`` characters is found wherever text is cut into chunks."""

    name: StageName
    patterns: tuple[re.Pattern[str], ...]
    reviewers: tuple[Reviewer, ...]
    hold_back: int

    @property
    def active(self) -> bool:
        """Whether there are rules."""
        return bool(self.patterns or self.reviewers)

    def refuses(self, text: str) -> bool:
        """Judge a whole text."""
        found = any(pattern.search(text) for pattern in self.patterns)
        return found or any(reviewer.refuses(self.name, text) for reviewer in self.reviewers)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Both stages."""

    input: Stage
    output: Stage


def read(path: Path) -> Rules:
    """Read the file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = msgspec.convert({} if raw is None else raw, _File)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not 1 <= file.hold_back <= MAX_HOLD_BACK:
        raise ConfigError(f"{path}: hold_back is {file.hold_back}; expected 1 to {MAX_HOLD_BACK}")
    return Rules(_stage(path, "input", file.input, file.hold_back), _stage(path, "output", file.output, file.hold_back))


def _stage(path: Path, name: StageName, file: _StageFile, hold_back: int) -> Stage:
    patterns = [_pattern(f"{path}: {name}.patterns[{number}]", text) for number, text in enumerate(file.patterns)]
    for number, word in enumerate(file.words):
        if not word.strip() or len(word) > MAX_WORD_CHARACTERS:
            raise ConfigError(f"{path}: {name}.words[{number}]: expected 1 to {MAX_WORD_CHARACTERS} characters")
    if file.words:
        patterns.append(words_pattern(file.words))
        longest = max(len(word) for word in file.words) + 1  # and the character that shows whether the word goes on
        hold_back = max(hold_back, longest) if file.patterns or file.reviewers else longest
    reviewers = tuple(Reviewer(each, _load(path, each)) for each in file.reviewers)
    return Stage(name, tuple(patterns), reviewers, hold_back)


def _pattern(place: str, text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{place}: no regular expression: {error}") from error
    if pattern.search(""):
        raise ConfigError(f"{place}: matches the empty text, so it would refuse everything")
    return pattern


def _load(path: Path, name: str) -> Review:
    points = importlib.metadata.entry_points(group=GROUP)
    if name not in points.names:
        known = ", ".join(sorted(points.names)) or "none"
        raise ConfigError(f"{path}: there is no reviewer {name!r}; installed packages have: {known}")
    try:
        review: Review = points[name].load()
    except Exception as error:
        raise ConfigError(f"{path}: the reviewer {name!r} cannot be loaded: {error!r}") from error
    if not callable(review):
        raise ConfigError(f"{path}: the reviewer {name!r} is no function")
    return review
