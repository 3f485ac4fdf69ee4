"""A progress bar for batch jobs in a terminal."""

from __future__ import annotations


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
