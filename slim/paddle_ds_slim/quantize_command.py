"""``paddle-ds quantize``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from paddle_ds.errors import ConfigError
from paddle_ds_slim.progress_bar import StageBar
from paddle_ds_slim.recipe import Gate, QuantRecipe, load_recipe, recipe_names

_BUDGETS = ("max_kl", "max_ppl_increase", "max_task_drop", "max_kept_share")


def _list_recipes(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    table = Table("recipe", "what it does", box=None)
    for name in recipe_names():
        overlay = name.startswith("kv8")
        table.add_row(
            f"…+{name}" if overlay else name, "INT8 cache, over any other" if overlay else load_recipe(name).description
        )
    Console().print(table)
    context.exit()


def named_files(values: tuple[str, ...], option: str) -> dict[str, Path] | None:
    """``NAME=FILE`` options as a mapping, ``None`` where there are none; a FILE alone is named after itself.

    Raises:
        ConfigError: two have the same name.
    """
    found: dict[str, Path] = {}
    for value in values:
        name, _, file = value.rpartition("=")
        path = Path(file)
        name = name or path.stem
        if name in found:
            raise ConfigError(f"{option} {value}: '{name}' is there already; give each its own name, NAME=FILE")
        found[name] = path
    return found or None


@click.command()
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--recipe", default="w8a8-smooth", show_default=True, help="A name, NAME+OVERLAY, or a YAML file.")
@click.option(
    "--list-recipes", is_flag=True, is_eager=True, expose_value=False, callback=_list_recipes, help="Show recipes and exit."
)
@click.option(
    "--calib", type=click.Path(path_type=Path), help="JSON lines or plain text to calibrate on. Default: self-generated."
)
@click.option(
    "--calib-self-generate", type=click.IntRange(1), help="Let the model write N samples; --calib then holds questions."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Picks texts, and samples answers.")
@click.option("--text", "texts", multiple=True, metavar="NAME=FILE", help="Text to measure loss and KL on. Repeatable.")
@click.option("--task", "tasks", multiple=True, metavar="NAME=FILE", help="Questions with answers, JSON lines. Repeatable.")
@click.option("--eval-tokens", type=click.IntRange(2), help="Predicted tokens of each text.  [default: 2048]")
@click.option("--max-kl", type=float, help="Budget: mean KL divergence, nats. Default: the recipe's.")
@click.option("--max-ppl-increase", type=float, help="Budget: increase of perplexity, 0.01 is one per cent.")
@click.option("--max-task-drop", type=float, help="Budget: drop of a task's share of right answers, 0.01 is one point.")
@click.option("--max-kept-share", type=float, help="Share of weights that repairs may keep in higher precision.")
@click.option("--no-gate", is_flag=True, help="Measure, and accept whatever comes out.")
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where unfinished work is kept. Default: where OUT will be.")
@click.option("--json", "as_json", is_flag=True, help="Print the passport.")
def quantize(src: str, out: Path, as_json: bool, **options: Any) -> None:
    """Quantise the checkpoint SRC into the new directory OUT.

    An interrupted run goes on where it was when the same command is given again. Exit status 3: the result was not good enough,
    and nothing was written.
    """
    from paddle_ds_slim.calibrating import CalibrationSource
    from paddle_ds_slim.passport import EvalConfig
    from paddle_ds_slim.passport.table import print_passport
    from paddle_ds_slim.quantize import quantize as run
    from paddle_ds_slim.quantize import work_path

    recipe = load_recipe(options["recipe"])
    evaluation = EvalConfig(
        texts=named_files(options["texts"], "--text"),
        tasks=named_files(options["tasks"], "--task"),
        max_tokens_per_text=options["eval_tokens"] or EvalConfig.max_tokens_per_text,
        seed=options["seed"],
    )
    calibration = CalibrationSource(options["calib"], options["calib_self_generate"], options["seed"])
    try:
        with StageBar() as bar:
            done = run(
                src,
                out,
                recipe,
                calibration=calibration,
                evaluation=evaluation,
                gate=_gate(recipe, options),
                tasks_are_optional=options["max_task_drop"] is None,
                work_dir=options["work_dir"],
                progress=bar,
            )
    except KeyboardInterrupt:
        click.echo(
            f"\ninterrupted; what is finished is in {work_path(out, options['work_dir'])}: the same command goes on from there",
            err=True,
        )
        raise SystemExit(130) from None
    if as_json:
        click.echo(json.dumps(done.passport.to_dict(), ensure_ascii=False, indent=2))
    else:
        print_passport(done.passport, Console())
        click.echo(f"written to {done.directory}, with passport.json and passport.html")


def _gate(recipe: QuantRecipe, options: dict[str, Any]) -> Gate | None:
    """The recipe's budgets with those that were given; ``None`` where the recipe's stand as they are.

    Raises:
        ConfigError: a budget that is no number above 0, or beside ``--no-gate``.
    """
    given = {name: options[name] for name in _BUDGETS if options[name] is not None}
    for name, value in given.items():
        if not value > 0 or (name == "max_kept_share" and value > 1):
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; expected a number above 0{' and up to 1' * (value > 1)}")
    if options["no_gate"]:
        if given:
            raise ConfigError(f"--no-gate and --{next(iter(given)).replace('_', '-')} contradict each other")
        return Gate()
    return msgspec.structs.replace(recipe.gate, **given) if given else None
