"""``paddle-ds export``: a checkpoint as a program for Paddle Inference."""

from __future__ import annotations

import json
import os
import sys
import typing
from pathlib import Path

import click

from paddle_ds import settings
from paddle_ds.config.engine import Quant
from paddle_ds.devices import environment
from paddle_ds.engine.progress_bar import LoadingBar
from paddle_ds.export.options import ExportOptions, Operators
from paddle_ds.runtime.memory_plan import readable_bytes


@click.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--quant",
    type=click.Choice(typing.get_args(Quant)),
    default="auto",
    show_default=True,
    help="auto: as stored, and w8a8 for a checkpoint that is not quantised.",
)
@click.option(
    "--operators",
    type=click.Choice(typing.get_args(Operators)),
    default="compiled",
    show_default=True,
    help="compiled: the engine's own operators, in a library beside the program; for the CPU. plain: Paddle's operators only.",
)
@click.option("--max-context-tokens", type=click.IntRange(1), help="Longest prompt plus answer. Default: the model's own.")
@click.option("--all-logits", is_flag=True, help="Return the logits of every new token, not of the last alone.")
@click.option("--json", "as_json", is_flag=True, help="Print what OUT/export.json says.")
def export(
    checkpoint: str,
    out: Path,
    quant: Quant,
    operators: Operators,
    max_context_tokens: int | None,
    all_logits: bool,
    as_json: bool,
) -> None:
    """Write CHECKPOINT (a directory, a weight file or a hub name) as a program for Paddle Inference to the new directory OUT."""
    current = settings.load()
    environment.prepare(current.num_threads)
    # Paddle's core warns, of every program, of an argument that Paddle's own Python code gives it
    os.environ.setdefault("GLOG_minloglevel", "2")
    environment.import_paddle()
    from paddle_ds.export.directory import export_checkpoint

    options = ExportOptions(quant, operators, max_context_tokens, all_logits)
    with LoadingBar(sys.stderr.isatty()) as bar:
        report = export_checkpoint(checkpoint, out, options, current, bar)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    weights = ", ".join(f"{dtype} {readable_bytes(count)}" for dtype, count in report["weight_bytes"].items())
    runs = ", ".join(report["custom_operators"]) or "Paddle's operators only"
    click.echo(f"{out}: {report['quant']}, {weights}; {runs}")
