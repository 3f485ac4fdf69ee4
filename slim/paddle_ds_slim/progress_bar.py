"""A bar on the terminal with stage, layer and time left; where standard error is no terminal, a line for each stage."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from paddle_ds.logs import fields

logger = logging.getLogger(__name__)


class StageBar:
    """A :data:`paddle_ds_slim.progress.Progress`. Use as a context manager."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[item]}", style="dim"),
            console=Console(stderr=True),
            disable=not self._is_terminal,
        )
        self._stage = ""
        self._task: TaskID | None = None

    def __call__(self, stage: str, item: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            logger.info("quantize.stage", extra=fields(stage=stage, steps=total or None))
            self._task = self._bar.add_task(stage, total=total or None, item=item)
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total or None, item=item)

    def __enter__(self) -> StageBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
