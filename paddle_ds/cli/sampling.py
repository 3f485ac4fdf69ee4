"""Sampling options of ``generate`` and ``chat``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from paddle_ds import SamplingParams

F = TypeVar("F", bound=Callable[..., Any])

_NAMES = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n")
_OPTIONS = (
    click.option("--max-tokens", type=int, help="Most new tokens.  [default: up to the end of the context]"),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-p", type=float, default=1.0, show_default=True, help="Keep the most probable tokens up to this sum."),
    click.option("--top-k", type=int, default=0, show_default=True, help="Keep the k most probable tokens; 0 keeps all."),
    click.option("--seed", type=int, help="Same seed, same answer."),
    click.option("--stop", multiple=True, help="String that ends the answer; may be given several times."),
    click.option("--n", type=int, default=1, show_default=True, help="Answers per prompt."),
)


def sampling_options(function: F) -> F:
    """Add the options that make ``SamplingParams``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def sampling_params(options: dict[str, Any]) -> SamplingParams:
    """Take the sampling options out of a command's ``options``.

    Raises:
        InvalidRequest: a value is out of range.
    """
    return SamplingParams(**{name: options.pop(name) for name in _NAMES if name in options})
