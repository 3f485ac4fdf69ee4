"""The files in which HTTP workers keep their counters for each other, with room on the disk taken ahead.

prometheus_client maps them into memory with holes where nothing was written yet. On a full disk the kernel has no page to put
there, and ends the worker that counts (SIGBUS). So each worker takes the room before it begins to count, and where there is
none it counts in its own memory.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from paddle_ds.logs import fields

_log = logging.getLogger(__name__)

#: where prometheus_client reads the directory from, when it is imported
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: kinds of instruments that workers have, as they begin the names of files
KINDS = ("counter", "histogram")
#: histograms take 25 kB; counters 170 bytes for each route, status and key that was seen
ROOM_BYTES = 1 << 17


def take_room() -> bool:
    """Whether this worker shares its counters. To be called before prometheus_client is imported."""
    directory = Path(os.environ[VARIABLE])
    paths = [directory / f"{kind}_{os.getpid()}.db" for kind in KINDS]
    try:
        for path in paths:
            _fill(path)
    except OSError as error:
        for path in paths:
            path.unlink(missing_ok=True)
        del os.environ[VARIABLE]
        _log.error(
            "metrics.alone", extra=fields(directory=str(directory), error=str(error), instead="this worker shows its own counts")
        )
        return False
    return True


def forget_gauges(directory: Path, pid: int) -> None:
    """Remove the gauges of a worker that is gone; its counters stay, they have happened.

    As prometheus_client does, which the process that forks workers must not import.
    """
    for path in directory.glob(f"gauge_live*_{pid}.db"):
        path.unlink(missing_ok=True)


def _fill(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, ROOM_BYTES)
    finally:
        os.close(descriptor)
