"""A directory that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from paddle_ds.errors import CheckpointError


def check_absent(out: Path) -> Path:
    """``out`` as an absolute path.

    Raises:
        CheckpointError: something is there already; an empty directory is fine.
    """
    out = out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: already there; expected a directory that does not exist or is empty")
    return out


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory ``.<out>.<pid>.partial`` beside ``out`` that becomes ``out`` on success and is removed on failure.

    Raises:
        CheckpointError: ``out`` is there already, or the disk refuses (full, read-only …).
    """
    out = check_absent(out)
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
