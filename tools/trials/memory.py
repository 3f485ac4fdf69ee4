"""The memory of a server's processes, sampled while it works.

Proportional set sizes: what several processes share is counted once. ``anonymous`` is the part that the processes have filled
themselves; the rest are pages of files, which the kernel drops and reads again as it likes, and is no sign of a leak.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import psutil

from trials.server import Server

_EVERY_S = 1.0
MIB = 2**20


def now_bytes(server: Server) -> dict[str, int]:
    """By what the processes are; ``all`` of them together, and what is ``anonymous`` of that."""
    sizes: Counter[str] = Counter()
    anonymous = 0
    supervisor = psutil.Process(server.process.pid)
    for process in [supervisor, *supervisor.children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            told = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except (psutil.Error, OSError):  # it has just ended
            continue
        name = "http" if "gunicorn" in command else "engine" if "engine.process" in command else "supervisor"
        kib = {line.split()[0]: int(line.split()[1]) for line in told.splitlines()[1:]}
        sizes[name] += 1024 * kib["Pss:"]
        anonymous += 1024 * kib["Pss_Anon:"]
    return {**sizes, "all": sizes.total(), "anonymous": anonymous}


class Peak:
    """The highest figures while the block runs."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.bytes: dict[str, int] = {}

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        for name, size in now_bytes(self._server).items():
            self.bytes[name] = max(self.bytes.get(name, 0), size)


def mib(sizes: dict[str, int]) -> dict[str, int]:
    """For people."""
    return {name: round(size / MIB) for name, size in sizes.items()}
