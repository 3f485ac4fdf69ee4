"""``paddle-ds doctor``: what is wrong with this machine, and the command that mends it. Needs no network.

It runs before anything is installed, too, with the standard library alone: ``python -m paddle_ds doctor`` in a checkout, or
``python paddle_ds/cli/doctor.py``. Checks that need more are then skipped, and the report says what to install.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # as a file: beside it lies an inspect.py, which must not be taken for Python's own, and our package is two directories up
    _here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(_here)), *(path for path in sys.path if os.path.realpath(path) != _here)]

import argparse
import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from paddle_ds.cli.checks import Context, Finding, Questions, examine

_HELP = "Check this machine, and what is asked for by options. Exit status 1 if something is wrong that will stop a server."
_MARKS = {"ok": "ok  ", "warning": "warn", "error": "FAIL"}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option, for click and for argparse. ``kind``: ``bool`` for a switch."""

    name: str
    help: str
    kind: type = str
    choices: tuple[str, ...] = ()
    most: int | None = None

    @property
    def field(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


#: all but --json are fields of Questions
OPTIONS = (
    Option("--json", "Machine-readable.", bool),
    Option("--strict", "Exit status 1 on warnings, too; fallbacks of operators are errors.", bool),
    Option("--model", "Checkpoint to look at: is it whole, does it fit? Default: the embedded model."),
    Option("--config", "YAML file with an engine configuration; options win over it."),
    Option("--device", "Where it would run: cpu, or a type and an index such as npu:0."),
    Option("--quant", "In which precision.", choices=("auto", "w8a8", "w8a16", "none")),
    Option("--max-context-tokens", "Longest prompt plus answer.", int),
    Option("--kv-tokens", "Tokens the KV cache holds.", int),
    Option("--kv-dtype", "What it holds them as.", choices=("auto", "float32", "bfloat16", "int8")),
    Option("--max-running-requests", "Requests computed at the same time.", int),
    Option("--max-batch-tokens", "Tokens of one step.", int),
    Option("--host", "Address to listen on.  [default: 127.0.0.1]"),
    Option("--port", "Port to listen on.  [default: 8000]", int, most=65535),
)


def report(given: dict[str, Any]) -> int:
    """Examine and print. ``given``: values of :data:`OPTIONS` by field, ``None`` where not given. Returns the exit status."""
    questions = {name: value for name, value in given.items() if value is not None and name != "json"}
    asked = Questions(**questions)
    return tell(examine(Context(asked)), as_json=given["json"], strict=asked.strict)


def tell(findings: Iterable[Finding], *, as_json: bool, strict: bool) -> int:
    """Print, each finding as it comes or all as JSON. Returns the exit status; ``strict``: warnings count as errors do."""
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], ensure_ascii=False, indent=2))
    return int(any(finding.level == "error" or (strict and finding.level == "warning") for finding in found))


def _print(finding: Finding) -> None:
    print(f"{_MARKS[finding.level]}  {finding.topic:12} {finding.text}", flush=True)
    if finding.fix:
        print(f"      {'':12} fix: {finding.fix}", flush=True)


@functools.cache
def _click_command() -> Any:
    import click

    def kind(option: Option) -> Any:
        if option.choices:
            return click.Choice(option.choices)
        return click.IntRange(1, option.most) if option.kind is int else option.kind

    parameters: list[click.Parameter] = [
        click.Option([option.name, option.field], type=kind(option), is_flag=option.kind is bool, help=option.help)
        for option in OPTIONS
    ]

    def callback(**given: Any) -> None:
        sys.exit(report(given))

    return click.Command("doctor", callback=callback, params=parameters, help=_HELP)


def __getattr__(name: str) -> Any:
    """``doctor``, the command for click, is made when it is asked for: this module must not need click."""
    if name == "doctor":
        return _click_command()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def without_click(arguments: Sequence[str]) -> int:
    """The same command by the standard library alone. Returns the exit status; a wrong call ends the process with 2."""
    try:
        return report(parsed(arguments))
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Values of :data:`OPTIONS` by field, ``None`` where not given."""

    def number(option: Option, text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= (option.most or int(text)):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from 1" + (f" to {option.most}" if option.most else "")
            )
        return int(text)

    parser = argparse.ArgumentParser(prog="paddle-ds doctor", description=_HELP, allow_abbrev=False)
    for option in OPTIONS:
        if option.kind is bool:
            parser.add_argument(option.name, dest=option.field, action="store_true", help=option.help)
        else:
            kind = functools.partial(number, option) if option.kind is int else option.kind
            parser.add_argument(option.name, dest=option.field, type=kind, choices=option.choices or None, help=option.help)
    return vars(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(without_click(sys.argv[1:]))
