"""How a long run says where it is."""

from __future__ import annotations

from collections.abc import Callable

#: called with the stage (``layers``, ``evaluate``, ``write`` …), what is being worked on, and steps done and in all
Progress = Callable[[str, str, int, int], None]


def silent(stage: str, item: str, done: int, total: int) -> None:
    """Says nothing."""
