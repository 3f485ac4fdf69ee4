"""Answers to the server in pieces, so that the time limit of a write is a rate: a slow client is not a dead one.

Gunicorn writes what the application yields in one go, be it a token or the megabyte that came together while a client did not
read. The limit is for the whole write; a client that reads steadily and slowly would be given up in the middle of a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

#: a client has to take so much within the time limit of a write
PIECE_BYTES = 16 * 1024


class Pieces:
    """The body of an answer, no write of it longer than :data:`PIECE_BYTES`."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for data in self._body:
            if len(data) <= PIECE_BYTES:
                yield data
                continue
            for start in range(0, len(data), PIECE_BYTES):
                yield data[start : start + PIECE_BYTES]

    def close(self) -> None:
        """WSGI: the client has the answer, or is gone."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


def in_pieces(application: Callable[[Any, Any], Iterable[bytes]]) -> Callable[[Any, Any], Pieces]:
    """The same WSGI application, with bodies in pieces."""
    return lambda environ, start_response: Pieces(application(environ, start_response))
