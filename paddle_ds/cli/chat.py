"""``paddle-ds chat``: talk to the model in a terminal, token by token."""

from __future__ import annotations

from typing import Any

import click

from paddle_ds import LLM, SamplingParams, settings
from paddle_ds.cli.options import engine_config, engine_options
from paddle_ds.cli.sampling import sampling_options, sampling_params
from paddle_ds.errors import PaddleDSError


@click.command()
@click.option("--system", default="", help="System prompt.")
@sampling_options
@engine_options
def chat(system: str, **options: Any) -> None:
    """Chat with the model. An empty line or Ctrl-D ends it, /reset forgets the conversation."""
    params = sampling_params(options)
    llm = LLM(config=engine_config(settings.load(), **options))
    click.secho(f"{llm.loaded.name} ({llm.loaded.recipe.name}); /reset to start over, an empty line to leave", dim=True, err=True)
    opening = [{"role": "system", "content": system}] if system else []
    messages: list[dict[str, str]] = list(opening)
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            break
        if not text.strip():
            break
        if text.strip() == "/reset":
            messages = list(opening)
            continue
        messages.append({"role": "user", "content": text})
        try:
            messages.append({"role": "assistant", "content": _answer(llm, messages, params)})
        except PaddleDSError as error:
            click.secho(f"error ({error.code}): {error.message}", fg="red", err=True)
            messages.pop()
        except KeyboardInterrupt:
            click.secho(" stopped", dim=True, err=True)
            messages.pop()


def _answer(llm: LLM, messages: list[dict[str, str]], params: SamplingParams) -> str:
    content: list[str] = []
    for delta in llm.stream_chat(messages, params):
        if delta.reasoning:
            click.secho(delta.reasoning, dim=True, nl=False)
        if delta.content:
            if not content:
                click.echo()
            click.echo(delta.content, nl=False)
            content.append(delta.content)
    click.echo()
    return "".join(content)
