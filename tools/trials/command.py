"""The command line that the tools of trials share."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Trial(Protocol):
    """What a module of a trial has."""

    HELP: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of this trial."""

    def run(self, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
        """Carry it out in an empty directory. The result has ``passed``."""

    def rows(self, result: dict[str, Any], options: argparse.Namespace) -> list[str]:
        """The result as rows of the table in docs/reliability.md."""


def main(document: str, trials: Mapping[str, Trial]) -> int:
    """Run the trial that was asked for. Returns the exit status."""
    parser = argparse.ArgumentParser(description=document.partition("\n")[0])
    choices = parser.add_subparsers(dest="trial", required=True)
    for name, trial in trials.items():
        own = choices.add_parser(name, help=trial.HELP)
        trial.arguments(own)
        own.add_argument("--log", type=Path, default=Path(os.devnull), help="file that keeps what the server writes")
        own.add_argument("--json", type=Path, help="file to which the result is added as a line")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(143))  # so that the server does not outlive the trial
    trial = trials[options.trial]
    with tempfile.TemporaryDirectory(prefix="pds-") as name:
        result = {"trial": options.trial, **trial.run(Path(name), options)}
    print(json.dumps(result))
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as results:
            results.write(json.dumps(result) + "\n")
    print("\n".join(trial.rows(result, options)))
    return 0 if result["passed"] else 1
