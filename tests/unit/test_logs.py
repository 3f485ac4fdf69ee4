"""Log lines for people and for machines."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
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


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[logs.LineHandler]:
    """Writes JSON lines to the file ``log``."""
    with (tmp_path / "log").open("a") as stream:
        made = logs.LineHandler(stream)
        made.setFormatter(logs.JsonFormatter())
        yield made


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_lines_without_room_are_counted_and_the_next_ones_are_whole(tmp_path: Path, handler: logs.LineHandler) -> None:
    descriptor = handler.stream.fileno()
    kept = os.dup(descriptor)
    handler.handle(record("before"))
    os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
    for _ in range(300):  # more than any buffer would hold
        handler.handle(record("lost"))
    os.dup2(kept, descriptor)
    handler.handle(record("after"))
    handler.handle(record("after that"))
    handler.stream.flush()  # nothing was left behind
    entries = lines_of(tmp_path / "log")
    assert [entry["event"] for entry in entries] == ["before", "logs.lines_lost", "after", "after that"]
    assert (entries[1]["level"], entries[1]["lines"]) == ("warning", 300)


def test_a_line_that_was_cut_short_spoils_no_other(
    tmp_path: Path, handler: logs.LineHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def room_for_ten_bytes(descriptor: int, data: memoryview) -> int:
        if len(data) <= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: min(10, len(data) - 10)])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", room_for_ten_bytes)
        handler.handle(record("torn"))
    handler.handle(record("whole"))
    torn, *rest = [line for line in (tmp_path / "log").read_text().splitlines() if line]
    with pytest.raises(ValueError, match=r"Unterminated|Expecting|delimiter"):
        json.loads(torn)
    assert [json.loads(line)["event"] for line in rest] == ["logs.lines_lost", "whole"]
