"""Server-sent events: the frames, the headers, and the loop that turns a generation into a stream.

data: {json}\\n\\n            an event
: ping\\n\\n                  keep-alive after silence; also how a vanished client is noticed
data: {"error":{…}}\\n\\n     the generation failed after the headers were sent
data: [DONE]\\n\\n            always last
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec
from flask import Response

from paddle_ds.errors import PaddleDSError
from paddle_ds_serving.choice import Piece
from paddle_ds_serving.generation import Generation
from paddle_ds_serving.http_errors import ClientGone, error_json, unexpected
from paddle_ds_serving.protocol.usage import UsageBody
from paddle_ds_serving.request_log import RequestRecord

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

#: how long the status line waits for the first event, so that an error at the door is a status and not an event
FIRST_EVENT_S = 1.0

_encode = msgspec.json.encode


class Renderer(Protocol):
    """How an API writes a stream."""

    def first(self) -> Iterable[msgspec.Struct]:
        """Events before any token."""

    def piece(self, piece: Piece) -> Iterable[msgspec.Struct]:
        """Events for what is new of one answer."""

    def last(self, usage: UsageBody) -> Iterable[msgspec.Struct]:
        """Events after every answer has ended."""


def frame(body: bytes) -> bytes:
    """One event. JSON holds no line break, so a body is one line."""
    return b"data: " + body + b"\n\n"


def stream_response(generation: Generation, renderer: Renderer, ping_s: float, record: RequestRecord) -> Response:
    """The response of a stream.

    Raises:
        PaddleDSError: the engine refused or failed within the first second, before anything was sent.
    """
    record.stream = True
    try:
        generation.wait(min(FIRST_EVENT_S, ping_s))
        generation.raise_failure()
    except BaseException:
        generation.close()
        raise
    body = _writes(generation, renderer, ping_s, record)
    response = Response(body, content_type="text/event-stream")
    response.headers["cache-control"] = "no-cache"
    response.headers["x-accel-buffering"] = "no"
    response.call_on_close(generation.close)
    return response


def _writes(generation: Generation, renderer: Renderer, ping_s: float, record: RequestRecord) -> Iterator[bytes]:
    """Whole frames, several to a write where several were ready."""
    try:
        yield from _until_done(generation, renderer, ping_s)
        yield b"".join(frame(_encode(event)) for event in renderer.last(generation.usage())) + DONE
    except GeneratorExit:  # a write failed, be it the last one of an answer that is complete
        record.failed(ClientGone("the client did not take the whole answer").info())
        raise
    except ClientGone as error:
        record.failed(error.info())
    except PaddleDSError as error:
        record.failed(error.info())
        yield frame(error_json(error.info())) + DONE
    except Exception as error:
        info = unexpected(error, record.request_id)
        record.failed(info)
        yield frame(error_json(info)) + DONE


def _until_done(generation: Generation, renderer: Renderer, ping_s: float) -> Iterator[bytes]:
    ready = [frame(_encode(event)) for event in renderer.first()]
    written_s = time.monotonic()
    while True:
        ready += [frame(_encode(event)) for piece in generation.pieces() for event in renderer.piece(piece)]
        if not ready and time.monotonic() >= written_s + ping_s:
            ready.append(PING)
        if ready:
            yield b"".join(ready)
            ready.clear()
            written_s = time.monotonic()
        if generation.done:
            return
        generation.wait(max(0.0, written_s + ping_s - time.monotonic()))


def json_response(body: msgspec.Struct, status: int = 200) -> Response:
    """A record as a JSON response."""
    return Response(_encode(body), status=status, content_type="application/json")
