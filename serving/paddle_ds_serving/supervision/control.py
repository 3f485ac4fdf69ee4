"""The control socket: how commands on the same machine, and the /admin routes, talk to the supervisor.

    client ── {"op": "load", "path": "/models/new"}\\n ──► supervisor
    client ◄─ {"result": {…}}\\n  or  {"error": {…}}\\n ── supervisor

One question and one answer a connection, each a line of JSON; the answer to an update comes when the update is over. The socket
lies in the run directory, which only the server's own user may enter (mode 0700): that is the permission.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from paddle_ds.errors import EngineUnavailable, ErrorInfo, InternalError, InvalidRequest, PaddleDSError, from_info
from paddle_ds.logs import fields

_log = logging.getLogger(__name__)

FILE_NAME = "control.sock"
_MAX_BYTES = 1 << 20
#: for the question to arrive
_READ_S = 10.0
_BACKLOG = 16
_MAX_CONNECTIONS = 32

Handler = Callable[[Mapping[str, Any]], Any]


class ControlServer:
    """Answers on ``directory/control.sock`` until :meth:`close`; each question on a thread of its own."""

    def __init__(self, directory: Path, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._path = directory / FILE_NAME
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(_BACKLOG)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Take no more questions."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            self._slots.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="control-request", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_READ_S)
                answer = self._answer(connection)
                with contextlib.suppress(OSError):  # who asked has left
                    connection.sendall(msgspec.json.encode(answer) + b"\n")
        finally:
            self._slots.release()

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            question = _read_question(connection)
            handler = self._handlers.get(str(question.get("op")))
            if handler is None:
                raise InvalidRequest(f"no such operation; have: {', '.join(self._handlers)}", param="op")
            return {"result": handler(question)}
        except PaddleDSError as error:
            return {"error": error.info()}
        except Exception as error:
            _log.error("control.crashed", exc_info=error)
            return {"error": InternalError(f"the supervisor failed: {error!r}").info()}


def _read_question(connection: socket.socket) -> dict[str, Any]:
    try:
        return msgspec.json.decode(_read_line(connection), type=dict[str, Any])
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise InvalidRequest(f"not a question: {error}") from error


class _Answer(msgspec.Struct):
    result: Any = None
    error: ErrorInfo | None = None


#: made now, not at the first use by one of many threads: msgspec has no lock there, and a second thread would end the process
_decode_answer = msgspec.json.Decoder(_Answer).decode


def ask(path: Path, op: str, /, *, timeout_s: float | None = None, **arguments: Any) -> Any:
    """Ask the supervisor whose control socket is at ``path`` and wait for its answer.

    Raises:
        EngineUnavailable: nobody answers there.
        PaddleDSError: what the supervisor refuses with.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(msgspec.json.encode({"op": op, **arguments}) + b"\n")
            line = _read_line(connection)
    except OSError as error:
        raise EngineUnavailable(f"no server answers at {path}: {error}") from error
    if not line:
        raise EngineUnavailable(f"the server at {path} ended without an answer")
    answer = _decode_answer(line)
    if answer.error is not None:
        raise from_info(answer.error)
    _log.debug("control.answered", extra=fields(op=op))
    return answer.result


def _read_line(connection: socket.socket) -> bytes:
    content = b""
    while not content.endswith(b"\n"):
        block = connection.recv(65536)
        if not block:
            break
        content += block
        if len(content) > _MAX_BYTES:
            raise ValueError(f"longer than {_MAX_BYTES} bytes")
    return content.rstrip(b"\n")


def find(runtime_dir: Path, pid: int | None = None) -> Path:
    """The control socket of the server that runs with ``runtime_dir``.

    Raises:
        EngineUnavailable: there is none, or there are several and ``pid`` does not say which.
    """
    pattern = f"serve-{pid}" if pid is not None else "serve-*"
    found = sorted(path for path in runtime_dir.glob(f"{pattern}/{FILE_NAME}") if _answers(path))
    if len(found) == 1:
        return found[0]
    if not found:
        raise EngineUnavailable(
            f"no running server is known in {runtime_dir}; is PADDLE_DS_RUNTIME_DIR (and the user) the same as the server's?"
        )
    names = ", ".join(path.parent.name.removeprefix("serve-") for path in found)
    raise EngineUnavailable(f"several servers run here; say which with --pid: {names}")


def _answers(path: Path) -> bool:
    """A killed supervisor leaves its socket's file behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
