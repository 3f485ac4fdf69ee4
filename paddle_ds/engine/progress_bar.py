"""Progress bars on standard error, only where asked for: while a model is loaded, and while a batch job runs."""

from __future__ import annotations

from typing import Any


class LoadingBar:
    """The share of a model that is loaded; nothing at all where it is not wanted. It takes its line away again at the end.

    It is drawn once there is something to show: before that a download may be drawing bars of its own.
    """

    def __init__(self, show: bool) -> None:
        self._show = show
        self._bar: Any = None

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, share: float) -> None:
        """Show ``share``, 0 to 1."""
        if not self._show or share <= 0:
            return
        if self._bar is None:
            self._bar = self._start()
        self._bar.update(self._bar.task_ids[0], completed=share)

    def close(self) -> None:
        """Take the bar away; nothing is drawn afterwards."""
        self._show = False
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("loading the model"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        # what is printed meanwhile is left alone: standard output may be a file
        bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)
        bar.add_task("loading", total=1.0)
        bar.start()
        return bar


class ProgressBar:
    """Answers done and tokens a second, on standard error; nothing at all where it is not wanted."""

    def __init__(self, total: int, show: bool) -> None:
        self._total = total
        self._show = show

    def __enter__(self) -> ProgressBar:
        if self._show:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task("answers", total=self._total, speed="")
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._show:
            self._bar.stop()

    def show(self, num_answers: int, num_tokens: int) -> None:
        """Answers and tokens so far."""
        if self._show:
            elapsed = self._bar.tasks[0].elapsed or 0.0
            speed = f"{num_tokens / elapsed:.0f} tokens/s" if elapsed > 0 else ""
            self._bar.update(self._task, completed=num_answers, speed=speed)
