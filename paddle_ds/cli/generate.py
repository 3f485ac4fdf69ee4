"""``paddle-ds generate``: continue prompts, from the command line or a file, as text or JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from paddle_ds import LLM, SamplingParams, settings
from paddle_ds.cli.options import engine_config, engine_options
from paddle_ds.cli.sampling import sampling_options, sampling_params


@click.command()
@click.argument("prompts", nargs=-1)
@click.option("--input", "file", type=click.File(encoding="utf-8"), help="File with one prompt a line; - for standard input.")
@click.option("--chat/--raw", default=True, show_default=True, help="Wrap each prompt as a user turn, or continue it as it is.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a prompt.")
@sampling_options
@engine_options
def generate(prompts: tuple[str, ...], file: Any, chat: bool, as_json: bool, **options: Any) -> None:
    """Answer PROMPTS in this process, all of them batched."""
    texts = list(prompts) + ([line.rstrip("\n") for line in file if line.strip()] if file else [])
    if not texts:
        raise click.UsageError("give a prompt, or --input FILE")
    params: SamplingParams = sampling_params(options)
    llm = LLM(config=engine_config(settings.load(), **options))
    if chat:
        outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params)
    else:
        outputs = llm.generate(texts, params)
    for text, output in zip(texts, outputs, strict=True):
        for completion in output.completions:
            if as_json:
                entry = {"prompt": text, "text": completion.text, "reasoning": completion.reasoning}
                entry |= {"finish_reason": completion.finish_reason, "num_tokens": len(completion.token_ids)}
                click.echo(json.dumps(entry, ensure_ascii=False))
            else:
                if completion.reasoning:
                    click.secho(completion.reasoning, dim=True, err=True)
                click.echo(completion.text)
    sys.stdout.flush()
