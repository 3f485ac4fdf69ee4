"""Whether the client of a request is still there, found out without reading from its connection."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

#: seconds between two looks while nothing is written to the client
POLL_S = 1.0

_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL


def client_gone(environ: dict[str, Any]) -> Callable[[], bool]:
    """A test that is true once the client has closed its side of the connection.

    Gunicorn passes the socket as ``gunicorn.socket``. ``poll`` is asked for the closing of the other side only, so bytes of
    a pipelined request stay where they are. Without a socket (Flask's test client) the client is never gone.
    """
    connection = environ.get("gunicorn.socket")
    if connection is None:
        return lambda: False
    poll = select.poll()
    poll.register(connection.fileno(), getattr(select, "POLLRDHUP", 0))
    return lambda: any(events & _GONE for _, events in poll.poll(0))
