"""A response as it arrives over a plain socket: head, chunks, events."""

from __future__ import annotations

import json
from typing import Any

_REFUSALS = (429, 503)


class Answer:
    """Fed with bytes, it knows what the response has said so far."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        #: it came to its end; no more bytes belong to it
        self.ended = False
        self.num_events = 0
        self.text = ""
        self._waiting = bytearray()
        self._body = bytearray()
        self._ids: set[str] = set()
        self._finish_reason: str | None = None
        self._num_tokens: int | None = None
        self._error_code: str | None = None
        self._done = False

    @property
    def outcome(self) -> str:
        """What the client would say of it."""
        if self.status == 0:
            return "connection closed"
        if self.status != 200:
            return self._refusal()
        if self._error_code is not None:
            return f"event {self._error_code}"
        if not (self.ended and self._done):
            return "cut off"
        if self._finish_reason is None or self._num_tokens is None or len(self._ids) != 1:
            return "incomplete"
        return "ok"

    @property
    def num_tokens(self) -> int:
        """As its usage says."""
        return self._num_tokens or 0

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._waiting += data
        if not self.status and not self._read_head():
            return
        if self.headers.get("transfer-encoding") == "chunked":
            self._read_chunks()
        else:
            self._body += self._waiting
            self._waiting.clear()
            self.ended = len(self._body) >= int(self.headers["content-length"])
        if self.status == 200:
            *events, rest = self._body.split(b"\n\n")
            self._body = rest
            for event in events:
                self._take(bytes(event))

    def _read_head(self) -> bool:
        head, separator, rest = self._waiting.partition(b"\r\n\r\n")
        if not separator:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._waiting = rest
        return True

    def _read_chunks(self) -> None:
        while not self.ended:
            size, separator, rest = self._waiting.partition(b"\r\n")
            num_bytes = int(size, 16) if separator else 0
            if not separator or len(rest) < num_bytes + 2:
                return
            self._body += rest[:num_bytes]
            self._waiting = rest[num_bytes + 2 :]
            self.ended = num_bytes == 0

    def _take(self, event: bytes) -> None:
        if not event.startswith(b"data: "):
            return  # a comment that keeps the connection alive
        self.num_events += 1
        if event == b"data: [DONE]":
            self._done = True
            return
        data: dict[str, Any] = json.loads(event[6:])
        if "error" in data:
            self._error_code = data["error"]["code"]
            return
        self._ids.add(f"{data['id']} {data['weight_version']}")
        for choice in data["choices"]:
            self._finish_reason = choice["finish_reason"] or self._finish_reason
            delta = choice["delta"]
            self.text += delta.get("reasoning_content", "") + delta.get("content", "")
        if data.get("usage"):
            self._num_tokens = data["usage"]["completion_tokens"]

    def _refusal(self) -> str:
        try:
            code = json.loads(self._body)["error"]["code"]
        except (ValueError, KeyError):
            return f"{self.status} without an error object"
        told = "" if self.status not in _REFUSALS or "retry-after" in self.headers else " without retry-after"
        return f"{self.status} {code}{told}"
