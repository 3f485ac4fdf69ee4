"""Gunicorn's threaded worker, with limits on how long a client may hold a thread, and with errors in JSON.

A thread belongs to a connection from its first byte on. Without limits, clients that send a header byte now and then, or read
nothing of an answer, would hold all threads of a worker for as long as they like.

    first byte ──► headers complete ──► body complete ──► answer ──► each write
        └── header_timeout_s ──┘└── body_timeout_s ──┘                └── write_timeout_s
        408                          408                              the connection is closed, its answers are aborted

Requests that Gunicorn's parser refuses never reach the application; here they get the same error object as all others.

A worker that is told to end does so wherever the signal finds it: just forked, or holding a lock of its own.
"""

from __future__ import annotations

import errno
import http
import logging
import os
import signal
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gunicorn.http import errors as parser_errors
from gunicorn.http.unreader import SocketUnreader
from gunicorn.util import close_graceful
from gunicorn.workers.gthread import TConn, ThreadWorker

from paddle_ds import settings as settings_table
from paddle_ds.errors import ErrorInfo, InvalidRequest, PaddleDSError
from paddle_ds.logs import fields
from paddle_ds_serving.http_errors import RequestTimeout, error_json, unexpected
from paddle_ds_serving.http_pieces import in_pieces

_log = logging.getLogger(__name__)

#: connections that may wait for their clients' last word at a time; more are closed at once
_NUM_LINGERING = 64
#: what streams have for their last words, and threads for their last lines, where a worker has to end at once
_END_WITHIN_S = 1.5
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_NOT_FATAL = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED)
_STATUS_OF = {
    parser_errors.LimitRequestLine: 414,
    parser_errors.LimitRequestHeaders: 431,
    parser_errors.ExpectationFailed: 417,
    parser_errors.ForbiddenProxyRequest: 403,
}


class BoundedSocket(socket.socket):
    """A connection that blocks for ``limit_s`` at most. TLS takes the limit over, so that a handshake has it, too."""

    limit_s: float = 60.0

    def setblocking(self, flag: bool) -> None:
        """Gunicorn asks for sockets that block without end."""
        self.settimeout(self.limit_s if flag else 0.0)


class BoundedReader(SocketUnreader):  # type: ignore[misc]
    """Reads a request, and raises :class:`RequestTimeout` where a part of it is not there in time."""

    _deadline_s: float | None = None
    _part = ""

    def expect(self, part: str, limit_s: float) -> None:
        """From now on, ``part`` of a request is read."""
        self._part = part
        self._deadline_s = time.monotonic() + limit_s

    def relax(self) -> None:
        """The request was read, or is of no interest any more."""
        self._deadline_s = None

    def chunk(self, size_hint: int | None = None) -> bytes:
        """What has arrived, at least one byte; nothing where the client is gone."""
        if self._deadline_s is None:
            return bytes(super().chunk(size_hint))
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise RequestTimeout(f"the request's {self._part} did not arrive in time")
        before_s = self.sock.gettimeout()
        self.sock.settimeout(left_s)
        try:
            return bytes(super().chunk(size_hint))
        except TimeoutError:
            raise RequestTimeout(f"the request's {self._part} did not arrive in time") from None
        finally:
            self.sock.settimeout(before_s)


class Linger:
    """Closes connections after the last byte of an answer was read, or two seconds later.

    Closing at once would throw away what the client has not read yet if it has sent something that nobody reads any more.
    Gunicorn waits in its main thread; a few dozen clients that do not close would stop a worker for so long that it is killed.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NUM_LINGERING, thread_name_prefix="linger")
        self._places = threading.BoundedSemaphore(_NUM_LINGERING)

    def close(self, connection: socket.socket) -> None:
        """Say the end, and close without waiting."""
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the client was first
            connection.close()
            return
        if not self._places.acquire(blocking=False):
            connection.close()
            return
        self._threads.submit(self._wait, connection)

    def _wait(self, connection: socket.socket) -> None:
        try:
            close_graceful(connection)
        finally:
            self._places.release()


class BoundedConnection(TConn):  # type: ignore[misc]
    """A connection whose parser reads through a :class:`BoundedReader`."""

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any, linger: Linger, header_s: float) -> None:
        super().__init__(cfg, sock, client, server)
        self._linger = linger
        self._header_s = header_s

    def init(self) -> None:
        """Called in a thread, before the first request."""
        super().init()
        if not isinstance(self.parser.unreader, BoundedReader):
            self.parser.unreader = BoundedReader(self.sock)
            self.parser.unreader.expect("header", self._header_s)

    def close(self, graceful: bool = False) -> None:
        """Called in the main thread, which must not wait for a client."""
        if graceful:
            self._linger.close(self.sock)
        else:
            super().close()


class BoundedWorker(ThreadWorker):  # type: ignore[misc]
    """What ``worker_class`` names in ``gunicorn_conf``."""

    sockets: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = settings_table.load()
        self._header_s = settings.header_timeout_s
        self._body_s = settings.body_timeout_s
        self._write_s = settings.write_timeout_s
        self._linger: Linger | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called once, in Gunicorn's master, before workers are forked.

        A worker has the master's handlers until it sets its own, and these would only note that the master was told to end. So
        stop signals wait meanwhile; see :meth:`init_signals`.
        """
        super().check_config(cfg, log)
        os.register_at_fork(
            before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS),
            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS),
        )

    def init_signals(self) -> None:
        """Called after the fork."""
        super().init_signals()
        signal.signal(signal.SIGALRM, _end_now)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def handle_quit(self, sig: int, frame: object) -> None:
        """End within ``_END_WITHIN_S``, whatever threads wait for. Called between any two instructions of the main thread.

        The base class takes a lock of the thread pool here. Where the main thread was about to hand over a request it holds
        that lock already, and waits for itself until the master kills it after the grace period.
        """
        signal.setitimer(signal.ITIMER_REAL, _END_WITHIN_S, _END_WITHIN_S)  # again and again: Python's own end takes no handlers
        self.handle_exit(sig, frame)

    def load_wsgi(self) -> None:
        """Called after the fork."""
        super().load_wsgi()
        self.wsgi.wsgi_app = in_pieces(self.wsgi.wsgi_app)

    def set_accept_enabled(self, enabled: bool) -> None:
        """As the base class does. A worker that ends takes what has come until now, and then closes its door.

        The base class leaves the door open until the last stream has ended, and clients wait behind it for nothing.
        """
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        for listener in self.sockets:
            num_before = -1
            while num_before < self.nr_conns < self.worker_connections:
                num_before = self.nr_conns
                self.accept(listener)
            listener.close()
        self.sockets = []

    def accept(self, listener: Any) -> None:
        """Take a new connection, as the base class does, in a socket of our own."""
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno in _NOT_FATAL:
                return
            raise
        connection = BoundedSocket(fileno=accepted.detach())
        connection.limit_s = self._header_s  # of a TLS handshake; what follows has limits of its own
        self.nr_conns += 1
        self._linger = self._linger or Linger()  # not before the fork
        server = listener.getsockname()
        self.enqueue_req(BoundedConnection(self.cfg, connection, address, server, self._linger, self._header_s))

    def handle(self, conn: Any) -> Any:
        """Read one request and answer it. In a thread."""
        if conn.initialized:
            conn.parser.unreader.expect("header", self._header_s)
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Let the application answer. In a thread."""
        reader: BoundedReader = conn.parser.unreader
        reader.expect("body", self._body_s)
        conn.sock.settimeout(self._write_s)
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            _log.warning("client.stalled", extra=fields(after_s=self._write_s))
            raise ConnectionResetError(errno.ECONNRESET, "the client reads nothing") from None
        finally:
            reader.relax()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what did not come as far as the application, or what the application let through."""
        info = _info_of(exc)
        self.wsgi.extensions["paddle_ds"].metrics.request_refused(info)
        _log.warning("http.refused", extra=fields(status=info.http_status, error_code=info.code, reason=info.message))
        body = error_json(info)
        head = (
            f"HTTP/1.1 {info.http_status} {http.HTTPStatus(info.http_status).phrase}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        try:
            client.settimeout(1.0)
            client.sendall(head.encode() + body)
        except OSError:
            _log.debug("http.refusal_unread")


def _end_now(signum: int, frame: object) -> None:
    os._exit(0)


def _info_of(error: BaseException) -> ErrorInfo:
    if isinstance(error, PaddleDSError):
        return error.info()
    if isinstance(error, parser_errors.ConfigurationProblem) or not isinstance(
        error, (parser_errors.ParseException, ssl.SSLError)
    ):
        return unexpected(error, "-")
    what = "a TLS record" if isinstance(error, ssl.SSLError) else str(error)[:200]
    info = InvalidRequest(f"the request is not valid HTTP: {what}").info()
    return ErrorInfo(info.code, info.message, info.type, _STATUS_OF.get(type(error), 400))
