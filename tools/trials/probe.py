"""Somebody who asks ``/health`` again and again while a server is loaded."""

from __future__ import annotations

import threading
import time

import requests

_EVERY_S = 0.25
_LIMIT_S = 30.0


class Probe:
    """Asks while the block runs."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        #: what each answer took
        self.seconds: list[float] = [0.0]
        self.failures: list[str] = []
        #: requests that the engine had at the same time, at most
        self.num_requests_max = 0

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            asked_s = time.monotonic()
            try:
                response = requests.get(f"{self._url}/health", timeout=_LIMIT_S)
                response.raise_for_status()
            except requests.RequestException as error:
                self.failures.append(type(error).__name__)
                continue
            self.seconds.append(time.monotonic() - asked_s)
            load = response.json().get("load", {"running": 0, "waiting": 0})  # a worker that has just started has no figures
            self.num_requests_max = max(self.num_requests_max, load["running"] + load["waiting"])
