"""Structured logging: an event name and fields, written as text for people or as JSON for machines.

>>> import logging; logging.getLogger("paddle_ds.example").info("model.loaded", extra=fields(seconds=1.5))
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any, TextIO

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


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each line at once, past Python's buffers. A line that finds no room (a full disk) is lost and counted.

    Buffers would keep lines that could not be written, hand out halves of them later, and make the exit status 120.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._num_lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, after one that says how many were lost before it."""
        try:
            lines = self.format(record) + "\n"
            if self._num_lost:
                lines = "\n" + self.format(_lost(self._num_lost)) + "\n" + lines  # the last line may have been cut short
        except Exception:
            self.handleError(record)
            return
        try:
            self._write(lines)
        except OSError:
            self._num_lost += 1
        else:
            self._num_lost = 0

    def _write(self, text: str) -> None:
        try:
            descriptor = self.stream.fileno()
        except (OSError, AttributeError):  # not a file, as under tests
            self.stream.write(text)
            self.flush()
            return
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            data = data[os.write(descriptor, data) :]


def _lost(num_lines: int) -> logging.LogRecord:
    level = {"levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord({"name": __name__, "msg": "logs.lines_lost", **level, **fields(lines=num_lines)})


def configure(level: str = "info", log_format: str = "text") -> None:
    """Send the project's log lines to standard error. Calling it again replaces the earlier choice."""
    handler = LineHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(_OverProgressBar(TextFormatter()) if sys.stderr.isatty() else TextFormatter())
    for name in ("paddle_ds", "paddle_ds_serving", "paddle_ds_slim"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
