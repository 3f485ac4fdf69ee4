"""``paddle-ds convert``: another checkpoint format, and what that costs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from paddle_ds.checkpoints.base import Progress
from paddle_ds_slim.convert import ConversionReport
from paddle_ds_slim.convert import convert as convert_checkpoint
from paddle_ds_slim.exporters import FORMATS


@click.command()
@click.argument("src")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(FORMATS), help="Format to write.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="float: type of all tensors. Default: the embedding's. paddlenlp-int8: type of scales and of all that stays in "
    "floating point, float16 or bfloat16.  [default: float16]",
)
@click.option("--allow-requantize", is_flag=True, help="Round integers that the format cannot hold a second time.")
@click.option("--keep-groups", is_flag=True, help="native: leave INT8 groups also where a scale per channel says the same.")
@click.option("--dry-run", is_flag=True, help="Say what would be exact and what would be lost; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, which OUT/conversion.json holds too.")
def convert(
    src: str,
    out: Path | None,
    to: str,
    dtype: str | None,
    allow_requantize: bool,
    keep_groups: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the checkpoint SRC (a directory, a weight file or a hub name) in another format into the new directory OUT."""
    if out is None and not dry_run:
        raise click.UsageError("Missing argument 'OUT'; only --dry-run goes without.")
    with _progress_bar() as progress:
        report = convert_checkpoint(
            src,
            out,
            to,
            dtype=dtype,
            allow_requantize=allow_requantize,
            keep_groups=keep_groups,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        _print(report)


@contextlib.contextmanager
def _progress_bar() -> Iterator[Progress]:
    """On standard error, and on a terminal only."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(name: str, done_bytes: int, total_bytes: int) -> None:
            bar.update(task, description=name, completed=done_bytes, total=total_bytes)

        yield show


def _print(report: ConversionReport) -> None:
    console = Console(markup=False, emoji=False, highlight=False)  # a path may hold brackets
    where = report.out or "nothing written"
    console.print(f"{report.source} ({report.source_format}) -> {report.to}: {where}", style="bold", soft_wrap=True)
    table = Table("outcome", "tensors", "weights", "largest relative error", box=None)
    for outcome, summary in report.outcomes.items():
        error = f"{summary.largest_error:.2e}" if summary.worst else "0"
        table.add_row(outcome, str(summary.num_tensors), f"{summary.num_weights:,}", error)
    console.print(table)
    for sentence in report.sentences:
        console.print(f"- {sentence}", soft_wrap=True)
    if report.bytes_after is not None:
        console.print(f"{report.bytes_before / 1e6:,.1f} MB became {report.bytes_after / 1e6:,.1f} MB.")
