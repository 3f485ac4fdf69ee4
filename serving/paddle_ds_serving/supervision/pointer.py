"""The pointer: a small file in the run directory that says which engine gets new requests.

    run directory (mode 0700)
      ├── current.json          {"generation": 2, "socket": "engine-2.sock", "next_socket": null, "refusal": "", …}
      ├── engine-1.sock         the old engine, until its last stream has ended
      ├── engine-2.sock
      └── control.sock          commands and /admin

The supervisor writes it beside and renames it, so a reader sees the old content or the new and nothing between. That rename is
the moment of the switch, for all HTTP workers at once: each looks at the file before each request.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from paddle_ds.errors import RunDirectoryError

FILE_NAME = "current.json"


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where new requests go. Sockets are names in the pointer's own directory."""

    #: counts the switches, from 1
    generation: int
    socket: str
    #: an engine that may be switched to soon: workers connect to it and load its tokenizer ahead
    next_socket: str | None = None
    #: why no request is taken now; empty: they are
    refusal: str = ""
    #: share of new requests whose answers workers report, so that the engine that joins can be compared; 0: none
    shadow_percent: float = 0.0


#: made now, not at the first use by one of many threads: msgspec has no lock there, and a second thread would end the process
_decode = msgspec.json.Decoder(Pointer).decode


def write(directory: Path, pointer: Pointer) -> None:
    """Put it in place, whole. Raises as :func:`put` does, and then the old one stays."""
    put(directory / FILE_NAME, msgspec.json.encode(pointer))


def put(path: Path, content: bytes) -> None:
    """Write a file of the run directory, whole or not at all.

    Raises:
        RunDirectoryError: the disk refuses, mostly because it is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        reason = error.strerror or type(error).__name__
        raise RunDirectoryError(f"{path.parent}: cannot be written to ({reason}); make room there and try again") from error


class PointerFile:
    """Reads the pointer when the file has changed. Not thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._seen: tuple[int, int, int] | None = None
        self._pointer: Pointer | None = None

    def read(self) -> Pointer | None:
        """The pointer; ``None`` before the first was written, or after its server is gone."""
        try:
            found = os.stat(self._path)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._pointer = _decode(self._path.read_bytes())
                self._seen = seen
        except FileNotFoundError:
            self._seen = self._pointer = None
        return self._pointer
