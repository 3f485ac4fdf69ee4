"""The floor beside each figure: bytes a second that two threads can read."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np


class BandwidthProbe:
    """Each thread sums an array of its own, much larger than the caches. NumPy leaves the interpreter's lock meanwhile."""

    def __init__(self, num_threads: int = 2, bytes_each: int = 1 << 28) -> None:
        self._arrays = [np.ones(bytes_each // 8, np.int64) for _ in range(num_threads)]
        self._pool = ThreadPoolExecutor(num_threads)
        self.gb_per_s(1)  # the threads exist, the pages are mapped

    def gb_per_s(self, num_tries: int = 5) -> float:
        """The best of some tries, about 20 ms each."""
        num_bytes = sum(array.nbytes for array in self._arrays)
        best_s = float("inf")
        for _ in range(num_tries):
            started_s = time.perf_counter()
            list(self._pool.map(np.sum, self._arrays))
            best_s = min(best_s, time.perf_counter() - started_s)
        return num_bytes / best_s / 1e9

    def close(self) -> None:
        """Give threads and memory back."""
        self._pool.shutdown()
        self._arrays.clear()
