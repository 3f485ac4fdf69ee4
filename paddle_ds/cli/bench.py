"""``paddle-ds bench``: figures as JSON. Timings live here, never in tests."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from paddle_ds import settings
from paddle_ds.cli import bench_serve
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


@bench.command("serve")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Base address of any OpenAI-compatible server.")
@click.option("--model", default="", help="Model name to ask for.")
@click.option("--num-requests", type=click.IntRange(1), default=64, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True, help="Requests kept under way.")
@click.option(
    "--request-rate", type=click.FloatRange(0, min_open=True), help="Requests a second at random instead of --concurrency."
)
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--ignore-eos", is_flag=True, help="Make every answer --max-tokens long, where the server knows the field.")
@click.option("--dataset", type=click.Path(path_type=Path), help="ShareGPT-layout JSON file. Default: small sums.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same requests.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the percentiles into this PNG file.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def serve(
    url: str,
    model: str,
    num_requests: int,
    concurrency: int,
    request_rate: float | None,
    max_tokens: int,
    ignore_eos: bool,
    dataset: Path | None,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Load a running server; measure times to and between tokens, and throughput. Exit status 1 if requests failed."""
    load = bench_serve.Load(url, model, num_requests, concurrency, request_rate, max_tokens, ignore_eos, seed)
    result = bench_serve.run(load, bench_serve.conversations(dataset))
    if plot is not None:
        bench_serve.plot(result, plot)
    if as_json:
        click.echo(json.dumps(result))
    else:
        for key, value in result.items():
            click.echo(f"{key:24} {value}")
    sys.exit(1 if result["errors"] else 0)
