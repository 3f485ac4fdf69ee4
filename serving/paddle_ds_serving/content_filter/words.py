"""A list of words as one regular expression, whose cost grows with the text and hardly with the list."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

#: letters and digits of scripts that put spaces between words: Latin, Greek, Cyrillic
_LETTER = "[0-9A-Za-z\u00c0-\u024f\u0370-\u052f]"
_IS_LETTER = re.compile(_LETTER)
_END = ""


def words_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Finds each word, whatever its case, but not inside a longer word. Scripts without spaces have no such border.

    >>> pattern = words_pattern(["art", "红色"])
    >>> [bool(pattern.search(text)) for text in ("Art!", "party", "深红色的", "深art的")]
    [True, False, True, True]
    """
    bordered: dict[str, Any] = {}
    free: dict[str, Any] = {}
    for word in words:
        text = " ".join(word.lower().split())
        node = bordered if _IS_LETTER.match(text[0]) else free
        for character in text:
            node = node.setdefault(character, {})
        node[_END] = f"(?!{_LETTER})" if _IS_LETTER.match(text[-1]) else ""
    parts = [f"(?<!{_LETTER}){_alternatives(bordered)}"] if bordered else []
    parts += [_alternatives(free)] if free else []
    return re.compile("|".join(parts), re.IGNORECASE)


def _alternatives(node: dict[str, Any]) -> str:
    """The words below a node of the tree; where one goes on as another, the longer one is tried first."""
    longer = [
        (r"\s" if character == " " else re.escape(character)) + _alternatives(below)
        for character, below in node.items()
        if character != _END
    ]
    ends = [node[_END]] if _END in node else []
    branches = [*longer, *ends]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
