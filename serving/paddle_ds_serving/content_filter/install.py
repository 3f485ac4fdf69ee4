"""The filter of an application: the rules in force, what they refuse, and how often they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter

from paddle_ds.errors import RequestError
from paddle_ds_serving.access.watched import Watched
from paddle_ds_serving.content_filter import rules
from paddle_ds_serving.content_filter.scan import OutputFilter
from paddle_ds_serving.engine_metrics import PREFIX


class ContentFiltered(RequestError):
    """The prompt is refused. What was found in it is not told."""

    code = "content_filter"


class ContentFilter:
    """Rules that follow their file.

    Raises:
        ConfigError: from the constructor, where the file is no good.
    """

    def __init__(self, path: Path | None, registry: CollectorRegistry) -> None:
        self._rules = None if path is None else Watched(path, rules.read, name="content_filter")
        self._filtered = Counter(
            f"{PREFIX}content_filtered",
            "Requests that the content filter refused (input), and answers that it ended (output).",
            ("stage",),
            registry=registry,
        )

    def admit(self, texts: Callable[[], Sequence[str]]) -> Callable[[], OutputFilter | None]:
        """Judge the texts that are asked; the result makes filters for the answers, by the same version of the file.

        Raises:
            ContentFiltered: a text is refused.
        """
        if self._rules is None:
            return lambda: None
        now = self._rules.value
        if now.input.active and any(now.input.refuses(text) for text in texts()):
            self._filtered.labels("input").inc()
            raise ContentFiltered("the prompt was refused by this server's content filter")
        if not now.output.active:
            return lambda: None
        return lambda: OutputFilter(now.output, self._filtered.labels("output").inc)
