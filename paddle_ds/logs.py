"""Structured logging: an event name and fields, written as text for people or as JSON for machines.

>>> import logging; logging.getLogger("paddle_ds.example").info("model.loaded", extra=fields(seconds=1.5))
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_FIELDS = "paddle_ds_fields"


def fields(**values: Any) -> dict[str, Any]:
    """Wrap key-value pairs for ``extra=`` of a logging call."""
    return {_FIELDS: values}


class TextFormatter(logging.Formatter):
    """``12:30:01 info  engine model.loaded seconds=1.5``"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix("paddle_ds").lstrip("._") or "main"
        pairs = "".join(f" {key}={value}" for key, value in getattr(record, _FIELDS, {}).items())
        line = f"{clock} {record.levelname.lower():7} {name} {record.getMessage()}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (unix seconds), ``level``, ``logger``, ``event``, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        extra = {key: value for key, value in getattr(record, _FIELDS, {}).items() if key not in entry}
        try:
            return json.dumps(entry | extra, ensure_ascii=False, default=str, allow_nan=False)
        except ValueError:  # NaN and infinity are not JSON
            return json.dumps(entry | {key: str(value) for key, value in extra.items()}, ensure_ascii=False)


class _OverProgressBar(logging.Formatter):
    """Takes the line that a progress bar, perhaps another process's, has drawn on the terminal away before the log line."""

    def __init__(self, lines: logging.Formatter) -> None:
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        return "\r\x1b[K" + self._lines.format(record)


def configure(level: str = "info", log_format: str = "text") -> None:
    """Send the project's log lines to standard error. Calling it again replaces the earlier choice."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(_OverProgressBar(TextFormatter()) if sys.stderr.isatty() else TextFormatter())
    for name in ("paddle_ds", "paddle_ds_serving", "paddle_ds_slim"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
