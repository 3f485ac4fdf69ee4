"""``paddle-ds keys``: make, list and revoke API keys in a file."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import click

from paddle_ds.errors import ConfigError
from paddle_ds_serving.access import keys as records
from paddle_ds_serving.access.keys import ApiKey
from paddle_ds_serving.access.scopes import Scope, parse_scopes

_FILE = click.option(
    "--file", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File with the hashes of keys."
)
_ID = click.option("--id", "key_id", required=True, help="What logs and metrics call the key.")
_QUOTA = click.IntRange(1, 10**9)


@click.group()
def keys() -> None:
    """Make, list and revoke API keys. A running server sees a change within a second."""


@keys.command()
@_ID
@click.option(
    "--scopes", default="infer", show_default=True, help=f"Of {', '.join(scope.value for scope in Scope)}, with commas."
)
@click.option("--rpm", type=_QUOTA, help="Requests a minute; without it, any number.")
@click.option("--tpm", type=_QUOTA, help="Tokens a minute, of prompts and answers; without it, any number.")
@_FILE
def create(key_id: str, scopes: str, rpm: int | None, tpm: int | None, path: Path) -> None:
    """Make a key and print it, this once. The file gets its hash."""
    try:
        parsed = parse_scopes([name.strip() for name in scopes.split(",") if name.strip()])
    except ValueError as error:
        raise ConfigError(f"--scopes: {error}") from error
    key = records.new_key()
    created = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = ApiKey(key_id, records.hash_of(key), parsed, rpm, tpm, created)
    records.parse(json.dumps(made.to_dict()), "--id")  # it must be readable again
    with _locked(path):
        entries = records.read(path) if path.exists() else ()
        if any(entry.id == key_id for entry in entries):
            raise ConfigError(f"{path}: there is a key {key_id!r} already; revoke it first, or choose another id")
        records.write(path, [*entries, made], as_json_lines=_as_json_lines(path))
    click.echo(key)
    click.echo(f"This is the only time that the key is shown; {path} has its hash.", err=True)


@keys.command("list")
@_FILE
def list_keys(path: Path) -> None:
    """Show ids, scopes and quotas."""
    for entry in records.read(path):
        quotas = [(entry.requests_per_minute, "requests/min"), (entry.tokens_per_minute, "tokens/min")]
        shown = ", ".join(f"{value} {unit}" for value, unit in quotas if value is not None) or "no quota"
        scopes = ",".join(sorted(scope.value for scope in entry.scopes))
        click.echo(f"{entry.id}\t{scopes}\t{shown}\t{entry.created or '-'}")


@keys.command()
@_ID
@_FILE
def revoke(key_id: str, path: Path) -> None:
    """Take a key out of the file."""
    with _locked(path):
        entries = records.read(path)
        left = [entry for entry in entries if entry.id != key_id]
        if len(left) == len(entries):
            known = ", ".join(entry.id for entry in entries) or "none"
            raise ConfigError(f"{path}: there is no key {key_id!r}; there are: {known}")
        records.write(path, left, as_json_lines=_as_json_lines(path))
    click.echo(f"{key_id} is revoked; servers that read this file refuse it within a second.")


def _as_json_lines(path: Path) -> bool:
    """A file stays what it is; a new one is what its name says."""
    if path.exists() and path.stat().st_size:
        return path.read_text(encoding="utf-8").lstrip().startswith("{")
    return path.suffix == ".jsonl"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the commands that change files in this directory."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
