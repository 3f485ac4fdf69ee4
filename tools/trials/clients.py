"""Clients that stream without a pause, and what became of each of their requests."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping

import requests

from trials.server import BACK_S


class Clients:
    """Streams without a pause, and what became of each. ``headers`` go with every request."""

    def __init__(self, url: str, num_streams: int, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        self._headers = headers
        self._over = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        #: seconds without a word, the longest of each request
        self.silences_s: list[float] = []
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(num_streams)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, index: int) -> None:
        while not self._over.is_set():
            outcome = self._ask(index)
            self.outcomes[outcome] += 1
            if outcome != "ok":
                time.sleep(0.1)

    def _ask(self, index: int) -> str:
        body = {"messages": [{"role": "user", "content": f"{index}+7"}], "stream": True, "temperature": 0}
        versions: set[str] = set()
        heard_s, longest_s, done = time.monotonic(), 0.0, False
        try:
            url = f"{self._url}/v1/chat/completions"
            with requests.post(url, json=body, headers=self._headers, stream=True, timeout=BACK_S) as response:
                if response.status_code != 200:
                    return f"{response.status_code} {response.json()['error']['code']}"
                for line in response.iter_lines():
                    longest_s, heard_s = max(longest_s, time.monotonic() - heard_s), time.monotonic()
                    if line == b"data: [DONE]":
                        done = True
                    elif line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        if "error" in event:
                            return f"event {event['error']['code']}"
                        versions.add(event["weight_version"])
        except requests.ConnectionError:
            return "connection closed"
        except requests.RequestException as error:
            return type(error).__name__
        finally:
            self.silences_s.append(max(longest_s, time.monotonic() - heard_s))
        if len(versions) != 1:
            return "mixed versions"
        self.versions[versions.pop()] += 1
        return "ok" if done else "ended early"
