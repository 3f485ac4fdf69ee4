"""What this application needs of the engine's client, as a shape.

The real client is ``paddle_ds.ipc.client.EngineClient``; tests bring their own. Handlers are typed against the shape,
so that no route can reach behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from paddle_ds.ipc.messages import Delta, EngineInfo, Failed, Finished, Stats, Submit

Event = Delta | Finished | Failed


class TokenStream(Protocol):
    """The tokens of all requests that were submitted together."""

    def get(self, timeout_s: float | None = None) -> Event | None:
        """The next event; ``None`` when none came within ``timeout_s`` (0 asks without waiting)."""

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        """End these requests (by default all that are unfinished). Calling it again does nothing."""


class EngineClient(Protocol):
    """One HTTP worker's connection to the engine."""

    @property
    def info(self) -> EngineInfo | None:
        """The engine's state as last heard; ``None`` before the first word from it."""

    @property
    def stats(self) -> Stats | None:
        """The engine's gauges as last heard."""

    @property
    def connected(self) -> bool:
        """False once the engine is gone."""

    def submit(self, requests: Sequence[Submit]) -> TokenStream:
        """Hand requests to the engine.

        Raises:
            EngineUnavailable: there is no engine that takes requests.
            ServerOverloaded: too many requests wait already.
        """

    def close(self) -> None:
        """Drop the connection."""
