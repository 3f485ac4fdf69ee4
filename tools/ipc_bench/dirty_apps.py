"""The script as Gunicorn's dirty applications, in two ways.

``StreamApp`` is the documented one: an action that is a generator, one call a request. Gunicorn gives a dirty worker its next
call when the last one has ended, streams included, so one worker has one stream at a time.

``ExchangeApp`` is the best that could be built on it for many streams on one model: no streams at all, but a short call that
brings what is new for an HTTP worker and takes away its new requests and aborts, over and over.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence

from gunicorn.dirty import DirtyApp  # type: ignore[import-untyped]

from ipc_bench import script


class StreamApp(DirtyApp):  # type: ignore[misc]
    """One call, one stream."""

    def init(self) -> None:
        script.load()
        self._readers: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[script.Frame]]] = {}
        self._thread = script.ScriptThread(self._deliver)

    def where(self) -> int:
        """The process that serves this application."""
        return os.getpid()

    async def generate(self, request_id: str, num_prompt: int, num_frames: int) -> AsyncIterator[list[int]]:
        """The tokens of a request."""
        frames: asyncio.Queue[script.Frame] = asyncio.Queue()
        self._readers[request_id] = (asyncio.get_running_loop(), frames)
        self._thread.add(request_id, "", num_prompt, num_frames)
        try:
            while True:
                frame = await frames.get()
                yield [frame.stamp_ns]
                if frame.is_last:
                    return
        finally:
            del self._readers[request_id]
            self._thread.abort([request_id])

    def _deliver(self, frames: list[script.Frame]) -> None:
        for frame in frames:
            if (reader := self._readers.get(frame.request_id)) is not None:
                loop, queue = reader
                loop.call_soon_threadsafe(queue.put_nowait, frame)


class OtherStreamApp(StreamApp):
    """A second model version."""


class ExchangeApp(DirtyApp):  # type: ignore[misc]
    """One call, whatever is new."""

    def init(self) -> None:
        script.load()
        self._new: dict[str, list[tuple[str, list[int], bool]]] = {}
        self._stepped = threading.Condition()
        self._num_steps = 0
        self._thread = script.ScriptThread(self._deliver)

    def where(self) -> int:
        """The process that serves this application."""
        return os.getpid()

    def exchange(
        self, owner: str, submits: Sequence[tuple[str, int, int]], aborts: Sequence[str]
    ) -> list[tuple[str, list[int], bool]]:
        """Take requests and aborts of one HTTP worker; give what it has not seen, after a step at the latest."""
        for request_id, num_prompt, num_frames in submits:
            self._thread.add(request_id, owner, num_prompt, num_frames)
        self._thread.abort(aborts)
        with self._stepped:
            seen = self._num_steps
            # the other HTTP workers wait behind this call: it may not wait longer than for one step
            self._stepped.wait_for(lambda: owner in self._new or self._num_steps != seen, timeout=script.PERIOD_NS / 1e9)
            return self._new.pop(owner, [])

    def _deliver(self, frames: list[script.Frame]) -> None:
        with self._stepped:
            for frame in frames:
                self._new.setdefault(frame.owner, []).append((frame.request_id, [frame.stamp_ns], frame.is_last))
            self._num_steps += 1
            self._stepped.notify_all()


class OtherExchangeApp(ExchangeApp):
    """A second model version."""
