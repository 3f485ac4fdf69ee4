"""``paddle-ds eval``: measure a checkpoint, against a reference where one is named."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from paddle_ds import settings
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.devices import environment
from paddle_ds.errors import ConfigError
from paddle_ds_slim.passport import EvalConfig, Passport, require, write_json
from paddle_ds_slim.passport.html import write_html
from paddle_ds_slim.passport.table import print_passport
from paddle_ds_slim.progress_bar import StageBar
from paddle_ds_slim.quantize_command import named_files
from paddle_ds_slim.recipe import Gate

_BUDGETS = ("max_kl", "max_ppl_increase", "max_task_drop")


@click.command("eval")
@click.argument("model")
@click.option("--reference", help="Directory or hub name of the model to compare with; it runs in floating point.")
@click.option("--text", "texts", multiple=True, metavar="NAME=FILE", help="Text to predict. Default: the model writes it itself.")
@click.option(
    "--task", "tasks", multiple=True, metavar="NAME=FILE", help="Questions with answers, JSON lines. Default: small sums."
)
@click.option("--max-kl", type=click.FloatRange(0), help="Budget: mean KL divergence, nats.")
@click.option("--max-ppl-increase", type=click.FloatRange(0), help="Budget: increase of perplexity, 0.01 is one per cent.")
@click.option("--max-task-drop", type=click.FloatRange(0), help="Budget: drop of a task's share of right answers.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the passport into this file.")
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write it as a page into this file.")
@click.option("--quick", is_flag=True, help="Only what budgets look at: texts, and tasks if they have a budget.")
@click.option("--eval-tokens", type=click.IntRange(2), default=2048, show_default=True, help="Predicted tokens of each text.")
@click.option("--task-limit", type=click.IntRange(1), default=40, show_default=True, help="Questions of each task.")
@click.option("--max-answer-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="Of answers. 0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Of answers.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Picks questions, and samples answers.")
@click.option("--num-threads", type=click.IntRange(1), help="Kernel threads. Default: the usable cores.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where the reference's distributions lie meanwhile.")
def evaluate(model: str, reference: str | None, json_file: Path | None, html_file: Path | None, **options: Any) -> None:
    """Measure the checkpoint MODEL: a directory, a weight file or a hub name.

    Without --reference only what the model is by itself is measured. Exit status 3: it is over a budget.
    """
    budgets = Gate(**{name: options[name] for name in _BUDGETS if options[name] is not None})
    if reference is None and not budgets.is_open():
        raise click.UsageError("budgets compare with a reference; name one with --reference")
    for file in filter(None, (json_file, html_file)):
        if not file.absolute().parent.is_dir():
            raise ConfigError(f"{file}: its directory does not exist")  # better said before the measurement
    config = EvalConfig(
        texts=named_files(options["texts"], "--text"),
        tasks=named_files(options["tasks"], "--task"),
        max_tokens_per_text=options["eval_tokens"],
        task_limit=options["task_limit"],
        max_answer_tokens=options["max_answer_tokens"],
        temperature=options["temperature"],
        top_p=options["top_p"],
        seed=options["seed"],
    )
    current = settings.load()
    environment.prepare(options["num_threads"] or current.num_threads)
    environment.import_paddle()
    with StageBar() as bar:
        passport = _measured(model, reference, config, budgets, options["quick"], options["scratch"], bar)
    if json_file is not None:
        write_json(passport, json_file)
    if html_file is not None:
        write_html(passport, html_file)
    print_passport(passport, Console(markup=False, emoji=False))
    require(passport.gate, model)


def _measured(
    model: str, reference: str | None, config: EvalConfig, budgets: Gate, quick: bool, scratch: Path | None, bar: StageBar
) -> Passport:
    from paddle_ds_slim.passport.measure import Reference, compare, measure_alone

    if quick:
        config = config.without_extras(keep_tasks=budgets.max_task_drop is not None)
    if reference is None:
        with open_checkpoint(model) as checkpoint:
            return measure_alone(checkpoint, config, quick=quick, progress=bar)
    with open_checkpoint(reference) as source, open_checkpoint(model) as checkpoint, _scratch(scratch) as directory:
        kept = Reference.measure(source, config, Path(directory), bar)
        return compare(kept, checkpoint, config, budgets=budgets, quick=quick, progress=bar)


def _scratch(parent: Path | None) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="paddle-ds-eval-", dir=parent)
    except OSError as error:
        raise ConfigError(f"{parent or tempfile.gettempdir()}: no scratch directory can be made there: {error}") from error
