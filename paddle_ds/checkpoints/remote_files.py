"""Files below a URL, read in ranges where the server can do that. Breaks in the line are mended by asking for the rest."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from paddle_ds.errors import ConfigError, HubError

_BLOCK_BYTES = 1 << 20
#: times that a broken transfer is taken up again without a byte of progress
_MAX_STALLS = 4
_PAUSE_S = 0.5
_MAX_SMALL_BYTES = 256 << 20

_BROKEN = (OSError, http.client.HTTPException)


class RangesRefused(Exception):
    """The server sends whole files only."""


class RemoteFiles:
    """The files below one base URL."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """Raises :class:`ConfigError` for anything but http and https."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"{url}: expected a URL that begins with http:// or https://")
        self.url = url.rstrip("/") + "/"
        self._timeout_s = timeout_s
        #: bytes that came over the line
        self.received_bytes = 0

    def get(self, name: str) -> bytes | None:
        """A small file; ``None`` where there is none.

        Raises:
            HubError: the server does not answer, refuses, or the file is too large to be a small one.
        """
        for attempt in range(_MAX_STALLS + 1):
            try:
                content = b""
                for block in self._attempt(name, 0, None):
                    content += block
                    if len(content) > _MAX_SMALL_BYTES:
                        raise HubError(f"{self.url}{name}: over {_MAX_SMALL_BYTES >> 20} MiB; that is no file of its kind")
            except urllib.error.HTTPError as error:
                if error.code in (404, 410):
                    return None
                raise HubError(f"{self.url}{name}: the server answers {error.code} {error.reason}") from error
            except _BROKEN as error:
                if attempt == _MAX_STALLS:
                    raise HubError(f"{self.url}{name}: no answer: {error}") from error
                time.sleep(_PAUSE_S * attempt)
                continue
            self.received_bytes += len(content)
            return content
        raise AssertionError("unreachable")

    def read(self, name: str, begin: int, num_bytes: int) -> bytes:
        """A short range as a whole. Raises as :meth:`blocks` does."""
        return b"".join(self.blocks(name, begin, num_bytes))

    def blocks(self, name: str, begin: int, num_bytes: int | None) -> Iterator[bytes]:
        """A range in blocks; without ``num_bytes`` the file from ``begin`` to its end.

        Raises:
            RangesRefused: the server sends whole files only, and another part than the whole is wanted.
            HubError: it refuses, or the line breaks again and again.
        """
        stalls, at = 0, begin
        while num_bytes is None or at < begin + num_bytes:
            try:
                got = 0
                for block in self._attempt(name, at, None if num_bytes is None else begin + num_bytes):
                    at, got = at + len(block), got + len(block)
                    self.received_bytes += len(block)
                    yield block
                if num_bytes is None or at == begin + num_bytes:
                    return
                stalls = 0 if got else stalls + 1
                problem: BaseException | str = "the answer ended early"
            except urllib.error.HTTPError as error:
                if error.code == 416 and num_bytes is None:  # all of it is here already
                    return
                raise HubError(f"{self.url}{name}: the server answers {error.code} {error.reason}") from error
            except _BROKEN as error:
                stalls, problem = (0 if got else stalls + 1), error
            if stalls > _MAX_STALLS:
                raise HubError(f"{self.url}{name}: the transfer keeps breaking at byte {at}: {problem}")
            time.sleep(_PAUSE_S * stalls)

    def _attempt(self, name: str, at: int, end: int | None) -> Iterator[bytes]:
        wants_part = at > 0 or end is not None
        headers = {"Range": f"bytes={at}-{'' if end is None else end - 1}"} if wants_part else {}
        with self._open(name, headers) as answer:
            if wants_part and answer.status != 206:
                raise RangesRefused(name)
            length = answer.headers.get("content-length")
            left = int(length) if length and length.isdigit() else None
            while block := answer.read(_BLOCK_BYTES):
                if left is not None:
                    left -= len(block)
                yield block
            if left:  # http.client ends quietly when the connection does
                raise http.client.IncompleteRead(b"", left)

    def _open(self, name: str, headers: dict[str, str]) -> Any:
        # identity: a range of a compressed answer would be none of the file's
        request = urllib.request.Request(self.url + urllib.parse.quote(name), headers={"Accept-Encoding": "identity", **headers})
        return urllib.request.urlopen(request, timeout=self._timeout_s)
