"""``paddle-ds``: commands of the library, and those that packages above it add through entry points."""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata

import click

from paddle_ds import __version__
from paddle_ds.errors import DeviceLost, PaddleDSError

#: name -> module and attribute; imported only when the command is used
_COMMANDS = {
    "chat": "paddle_ds.cli.chat:chat",
    "devices": "paddle_ds.cli.devices:devices",
    "doctor": "paddle_ds.cli.doctor:doctor",
    "export": "paddle_ds.cli.export:export",
    "generate": "paddle_ds.cli.generate:generate",
    "inspect": "paddle_ds.cli.inspect:inspect",
    "bench": "paddle_ds.cli.bench:bench",
}
_ENTRY_POINTS = "paddle_ds.commands"


class _Commands(click.Group):
    """Finds commands by name without importing the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *(entry.name for entry in metadata.entry_points(group=_ENTRY_POINTS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module, _, attribute = _COMMANDS[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        for entry in metadata.entry_points(group=_ENTRY_POINTS, name=cmd_name):
            try:
                added: click.Command = entry.load()
            except ModuleNotFoundError as error:
                extra = "slim" if entry.value.startswith("paddle_ds_slim") else "serving"
                raise click.ClickException(
                    f"'{cmd_name}' needs {error.name}; install the extra that brings it: pip install paddle-ds[{extra}]"
                ) from error
            return added
        return None


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="paddle-ds")
def cli() -> None:
    """DeepSeek-R1 distilled models in INT8 on PaddlePaddle."""


def main() -> None:
    """Entry point: an error of ours is a sentence and its exit status (1 but for a few), never a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PaddleDSError as error:
        click.echo(f"error ({error.code}): {error.message}", err=True)
        if isinstance(error, DeviceLost):  # Python's own way out would wait for a device that does not answer
            sys.stdout.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
