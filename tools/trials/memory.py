"""The memory of a server's processes, sampled while it works."""

from __future__ import annotations

import threading
from collections import Counter

import psutil

from trials.server import Server

_EVERY_S = 1.0
MIB = 2**20


def now_bytes(server: Server) -> dict[str, int]:
    """Proportional set sizes: what several processes share is counted once. By what the processes are."""
    sizes: Counter[str] = Counter()
    supervisor = psutil.Process(server.process.pid)
    for process in [supervisor, *supervisor.children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            name = "http" if "gunicorn" in command else "engine" if "engine.process" in command else "supervisor"
            sizes[name] += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return {**sizes, "all": sizes.total()}


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
