"""The engine's end of the socket: one I/O thread between ZeroMQ and the step loop.

    workers ══ ROUTER ══╗                  ╔══ inbox (queue) ══► step loop
                        ╠══ I/O thread ════╣
    workers ◄═ ROUTER ══╝                  ╚◄═ PAIR (in-process) ═ step loop

The I/O thread answers ``Hello`` by itself, so a worker learns that the engine is loading while the main thread loads.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zmq

from paddle_ds.errors import EngineUnavailable, ErrorInfo, InternalError, PaddleDSError
from paddle_ds.ipc import messages
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

#: frames a worker may lag behind before it counts as gone
_MAX_LAG_FRAMES = 100_000


@dataclass(frozen=True)
class FromWorker:
    """A message and the worker it came from."""

    client: bytes
    message: messages.Submit | messages.Abort


@dataclass(frozen=True)
class WorkerGone:
    """A worker that cannot be reached any more, or says hello (again): nobody waits for what it has asked for so far."""

    client: bytes


class EngineServer:
    """Binds the socket and serves it until :meth:`close`. ``send`` and ``receive`` belong to one thread: the step loop's."""

    def __init__(self, socket_path: Path, info: messages.EngineInfo) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.setsockopt(zmq.SNDHWM, _MAX_LAG_FRAMES)
        self._router.setsockopt(zmq.RCVHWM, _MAX_LAG_FRAMES)
        self._router.setsockopt(zmq.LINGER, 500)
        # ZeroMQ's own thread exchanges these, so a busy step loop does not look dead
        self._router.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        self._router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
        self._router.bind(f"ipc://{socket_path}")
        name = f"inproc://out-{id(self)}"
        self._out_reader = self._context.socket(zmq.PAIR)
        self._out_reader.setsockopt(zmq.RCVHWM, 0)
        self._out_reader.bind(name)
        self._out = self._context.socket(zmq.PAIR)
        self._out.setsockopt(zmq.SNDHWM, 0)
        self._out.connect(name)
        self._inbox: queue.SimpleQueue[FromWorker | WorkerGone] = queue.SimpleQueue()
        self._info = info
        #: frames that could not be read and could not be answered; written by the I/O thread alone
        self.num_bad_frames = 0
        self._clients: set[bytes] = set()
        self._thread = threading.Thread(target=self._serve, name="ipc", daemon=True)
        self._thread.start()

    def receive(self, timeout_s: float | None = None) -> FromWorker | WorkerGone | None:
        """The next message; ``None`` when there is none within ``timeout_s`` (0: do not wait)."""
        try:
            return self._inbox.get(block=timeout_s != 0, timeout=timeout_s)
        except queue.Empty:
            # a deaf engine would keep its workers waiting; one that ends is restarted
            assert self._thread.is_alive(), "the I/O thread has died"
            return None

    def send(self, client: bytes, message: messages.Step) -> None:
        """Queue a frame for one worker."""
        self._out.send_multipart([client, messages.encode(message)])

    def broadcast(self, message: messages.EngineInfo | messages.Stats) -> None:
        """Queue a frame for every worker; an ``EngineInfo`` is also what workers that come later are told."""
        if isinstance(message, messages.EngineInfo):
            self._info = message
        self._out.send_multipart([b"", messages.encode(message)])

    def close(self) -> None:
        """Send what is queued, then close the socket."""
        with contextlib.suppress(zmq.Again):  # the thread has died: nobody reads this
            self._out.send_multipart([b"", b""], flags=zmq.NOBLOCK)
        self._thread.join(timeout=5)
        self._out.close(linger=0)
        self._context.term()

    def _serve(self) -> None:
        try:
            self._exchange()
        finally:
            self._out_reader.close(linger=0)
            self._router.close()

    def _exchange(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._out_reader, zmq.POLLIN)
        open_ = True
        while open_:
            ready = dict(poller.poll())
            if self._out_reader in ready:
                open_ = self._forward_queued()
            if self._router in ready:
                self._take_arrived()

    def _forward_queued(self) -> bool:
        for client, payload in _pending(self._out_reader):
            if not payload:
                return False
            for receiver in [client] if client else list(self._clients):
                self._send_now(receiver, payload)
        return True

    def _take_arrived(self) -> None:
        for client, payload in _pending(self._router):
            try:
                message = messages.decode_to_engine(payload)
            except Exception as error:  # a bad value, a deep nest, garbage: this thread must live
                self._refuse(client, payload, error)
                continue
            if isinstance(message, messages.Hello):
                self._clients.add(client)
                self._inbox.put(WorkerGone(client))  # one that had lost us has given up what it asked for before
                self._send_now(client, messages.encode(self._info))
            elif isinstance(message, messages.Submit) and self._info.state != "ready":
                error_info = EngineUnavailable(f"the engine is {self._info.state}").info()
                self._send_now(client, messages.encode(_failed(message.request_id, error_info)))
            else:
                self._inbox.put(FromWorker(client, message))

    def _refuse(self, client: bytes, payload: bytes, error: Exception) -> None:
        """Somebody waits for the end of a request: tell them where the frame still says which; else count it."""
        request_id = messages.request_id_of(payload)
        logger.warning(
            "ipc.bad_frame", extra=fields(client=client.decode(errors="replace"), request=request_id, error=str(error))
        )
        if request_id is None:
            self.num_bad_frames += 1
        else:
            known = error if isinstance(error, PaddleDSError) else InternalError(f"the engine cannot read this request: {error}")
            self._send_now(client, messages.encode(_failed(request_id, known.info())))

    def _send_now(self, client: bytes, payload: bytes) -> None:
        try:
            self._router.send_multipart([client, payload], flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # unreachable, or so far behind that its queue is full
            self._clients.discard(client)
            self._inbox.put(WorkerGone(client))
            logger.info("ipc.worker_gone", extra=fields(client=client.decode(errors="replace"), because=str(error)))


def _pending(socket: zmq.Socket[bytes]) -> Iterable[list[bytes]]:
    while True:
        try:
            frames = socket.recv_multipart(flags=zmq.NOBLOCK)
        except zmq.Again:
            return
        if len(frames) == 2:
            yield frames


def _failed(request_id: str, error: ErrorInfo) -> messages.Step:
    return messages.Step(failed=[messages.Failed(request_id, error)])
