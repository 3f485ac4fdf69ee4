"""``paddle-ds bench``: figures as JSON. Timings live here, never in tests."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from paddle_ds import settings
from paddle_ds.cli.options import engine_config, engine_options


@click.group()
def bench() -> None:
    """Measure speed and memory."""


@bench.command("engine")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, help="Tokens of each prompt.")
@click.option("--new-tokens", type=click.IntRange(1), default=32, show_default=True, help="Tokens of each answer.")
@click.option("--streams", type=click.IntRange(1), default=1, show_default=True, help="Requests side by side.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@engine_options
def engine(prompt_tokens: int, new_tokens: int, streams: int, as_json: bool, **options: Any) -> None:
    """Load a model in this process and time prefill and decode."""
    from paddle_ds.engine.bench import run

    result = run(engine_config(settings.load(), **options), prompt_tokens=prompt_tokens, new_tokens=new_tokens, streams=streams)
    record = dataclasses.asdict(result)
    if as_json:
        click.echo(json.dumps(record))
        return
    for key, value in record.items():
        click.echo(f"{key:24} {value}")
