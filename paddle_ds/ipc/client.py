"""A worker's end of the socket: submits requests, hands each its own stream of tokens, and notices when the engine is gone."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import queue
import secrets
import socket
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from paddle_ds.errors import EngineDied, EngineUnavailable
from paddle_ds.ipc import messages
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)

Event = messages.Delta | messages.Finished | messages.Failed


class TokenStream:
    """What comes back for the requests that were submitted together. One reader."""

    def __init__(self, client: EngineClient, request_ids: Iterable[str]) -> None:
        self._client = client
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.unfinished = set(request_ids)

    def get(self, timeout_s: float | None = None) -> Event | None:
        """The next event; ``None`` when none comes within ``timeout_s`` (``None``: wait, 0: do not).

        Every request ends in exactly one ``Finished`` or ``Failed``, also when the engine dies.
        """
        try:
            event = self._events.get(block=timeout_s != 0, timeout=timeout_s)
        except queue.Empty:
            return None
        if not isinstance(event, messages.Delta):
            self.unfinished.discard(event.request_id)
        return event

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        """End requests whose answers nobody needs; all unfinished ones by default. Their events may be left unread."""
        wanted = self.unfinished if request_ids is None else self.unfinished & set(request_ids)
        if wanted:
            self._client.abort(sorted(wanted))

    def put(self, event: Event) -> None:
        """For the client's I/O thread."""
        self._events.put(event)


class EngineClient:
    """One per process; any number of threads may submit.

    Attributes:
        info: the engine's last word about itself; kept after it is gone.
        stats: its last figures.
        connected: whether it is there now.
    """

    def __init__(self, socket_path: Path | str) -> None:
        self.info: messages.EngineInfo | None = None
        self.stats: messages.Stats | None = None
        self.connected = False
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._streams: dict[str, TokenStream] = {}
        self._lock = threading.Lock()
        #: (request that must still be wanted when its turn comes, or None for an abort; frame)
        self._outgoing: collections.deque[tuple[str | None, bytes]] = collections.deque()
        self._closing = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, self._name.encode())
        # not ZMQ_IMMEDIATE: it drops what has arrived when the connection ends, a last Finished included. What is still under
        # way to an engine that is gone reaches the next one before our Hello, which tells it to forget that
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._socket.connect(f"ipc://{socket_path}")
        self._thread = threading.Thread(target=self._run, name="engine-client", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[messages.Submit]) -> TokenStream:
        """Send requests that share one stream.

        Raises:
            EngineUnavailable: the engine is not there, or not ready.
        """
        stream = TokenStream(self, [request.request_id for request in requests])
        with self._lock:
            self._check_ready()
            for request in requests:
                self._streams[request.request_id] = stream
        for request in requests:
            self._outgoing.append((request.request_id, messages.encode(request)))
        self._wake()
        return stream

    def abort(self, request_ids: Sequence[str]) -> None:
        """Tell the engine that nobody waits for these any more."""
        self._outgoing.append((None, messages.encode(messages.Abort(list(request_ids)))))
        self._wake()

    def close(self) -> None:
        """End the I/O thread; requests in flight fail."""
        self._closing = True
        self._wake()
        self._thread.join(timeout=5)
        self._wake_reader.close()
        self._wake_writer.close()

    def _check_ready(self) -> None:
        if not self.connected or self.info is None:
            raise EngineUnavailable("the engine is not running; it is restarted by itself, try again in a few seconds")
        if self.info.state != "ready":
            raise EngineUnavailable(f"the engine is {self.info.state}; try again in a few seconds")

    def _wake(self) -> None:
        # when the pipe is full the thread has been woken often enough and will see the queue; closed: there is none to wake
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"x")

    def _run(self) -> None:
        poller = zmq.Poller()
        for source in (self._socket, self._monitor, self._wake_reader):
            poller.register(source, zmq.POLLIN)
        while not self._closing:
            ready = dict(poller.poll())
            # frames that arrived before the connection broke come first, whichever of the two was seen by poll()
            self._read_frames()
            if self._monitor in ready:
                self._read_monitor()
            if self._wake_reader.fileno() in ready:
                self._drain_wake()
            self._send_outgoing()
        self._lose_engine("the worker is stopping")
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()

    def _drain_wake(self) -> None:
        try:
            while self._wake_reader.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _send_outgoing(self) -> None:
        while self._outgoing:
            request_id, payload = self._outgoing.popleft()
            if not self.connected or (request_id is not None and request_id not in self._streams):
                continue  # failed while it waited here; a restarted engine must not compute it for nobody
            try:
                self._socket.send(payload, flags=zmq.NOBLOCK)
            except zmq.Again:
                self._lose_engine("it cannot be reached")

    def _read_frames(self) -> None:
        while True:
            try:
                payload = self._socket.recv(flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = messages.decode_from_engine(payload)
            except Exception as error:  # a deep nest, garbage: this thread must live
                logger.error("ipc.bad_frame", extra=fields(error=str(error)))
                continue
            self._take(message)

    def _take(self, message: messages.FromEngine) -> None:
        if isinstance(message, messages.Step):
            events: list[Event] = [*message.deltas, *message.finished, *message.failed]
            for event in events:
                self._deliver(event)
        elif isinstance(message, messages.Stats):
            self.stats = message
        else:
            if self.info is not None and self.info.boot_id != message.boot_id:
                self._lose_engine("it was restarted")
            self.info = message
            self.connected = True

    def _deliver(self, event: Event) -> None:
        if isinstance(event, messages.Delta):
            stream = self._streams.get(event.request_id)
        else:
            with self._lock:
                stream = self._streams.pop(event.request_id, None)
        if stream is not None:
            stream.put(event)

    def _read_monitor(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._socket.send(messages.encode(messages.Hello(self._name)))
            else:
                self._lose_engine("it ended while the request ran")

    def _lose_engine(self, because: str) -> None:
        """Fail everything in flight; new requests are refused until an engine says hello again."""
        with self._lock:
            self.connected = False
            lost, self._streams = self._streams, {}
        if lost:
            logger.warning("engine.lost", extra=fields(requests=len(lost), because=because))
        error = EngineDied(f"the engine was lost: {because}").info()
        for request_id, stream in lost.items():
            stream.put(messages.Failed(request_id, error))
