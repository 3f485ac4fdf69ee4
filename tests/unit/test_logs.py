"""Log lines for people and for machines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from paddle_ds import logs
from paddle_ds.logs import fields


@pytest.fixture(autouse=True)
def _restore_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("paddle_ds", "paddle_ds_serving", "paddle_ds_slim")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def record(message: str, *args: Any, name: str = "paddle_ds.engine", **values: Any) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, __file__, 1, message, args, None)
    vars(made).update(fields(**values))
    return made


@pytest.mark.parametrize(
    "values",
    [{}, {"seconds": 1.5, "ids": [1, 2]}, {"text": 'a "quote"\nand 思考 \ud800'}, {"path": object()}, {"share": float("nan")}],
    ids=["none", "plain", "text", "object", "nan"],
)
def test_a_json_line_is_one_object_whatever_the_fields(values: dict[str, Any]) -> None:
    line = logs.JsonFormatter().format(record("model.loaded", **values))
    entry = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert "\n" not in line
    assert (entry["level"], entry["logger"], entry["event"]) == ("warning", "paddle_ds.engine", "model.loaded")
    assert entry["time"] > 0
    assert set(entry) == {"time", "level", "logger", "event", *values}


def test_fields_do_not_hide_what_every_line_has() -> None:
    entry = json.loads(logs.JsonFormatter().format(record("step", event="other", level=3)))
    assert (entry["event"], entry["level"]) == ("step", "warning")


def test_a_text_line_reads_name_event_and_fields() -> None:
    line = logs.TextFormatter().format(record("took %d", 3, seconds=1.5))
    assert line.endswith("warning engine took 3 seconds=1.5")


@pytest.mark.parametrize(
    ("name", "shown"), [("paddle_ds", "main"), ("paddle_ds.ipc.client", "ipc.client"), ("paddle_ds_serving.app", "serving.app")]
)
def test_a_text_line_leaves_the_packages_name_out(name: str, shown: str) -> None:
    assert f"warning {shown} event" in logs.TextFormatter().format(record("event", name=name))


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_an_exception_is_part_of_the_line(formatter: logging.Formatter) -> None:
    made = record("failed")
    try:
        raise ValueError("the reason")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "the reason" in formatter.format(made)


def test_configure_writes_to_standard_error_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "text")
    logs.configure("info", "json")
    logging.getLogger("paddle_ds.x").info("hello", extra=fields(a=1))
    logging.getLogger("paddle_ds.x").debug("too detailed")
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["hello"]
