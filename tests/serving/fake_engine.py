"""An engine that answers from a script: in this process (:class:`FakeEngine`) or behind the real socket (:class:`IpcEngine`)."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from paddle_ds.errors import EngineUnavailable, ErrorInfo, PaddleDSError
from paddle_ds.ipc.messages import (
    Abort,
    Delta,
    EngineInfo,
    Failed,
    Finished,
    ModelInfo,
    Stats,
    Step,
    Submit,
    TokenLogprob,
    Usage,
)
from paddle_ds.ipc.server import EngineServer, WorkerGone
from paddle_ds.text import Tokenizer

Event = Delta | Finished | Failed


@dataclasses.dataclass(frozen=True)
class Gate:
    """The script goes on once this is open."""

    opened: threading.Event


@dataclasses.dataclass(frozen=True)
class Sleep:
    """Nothing for a while."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Fail:
    """The request ends with this error."""

    error: PaddleDSError


@dataclasses.dataclass(frozen=True)
class End:
    """The request ends with this reason, whatever the script still had."""

    reason: str


#: text or ids (one delta a token), or one of the records above
Line = str | list[int] | Gate | Sleep | Fail | End
Script = Callable[[Submit], Iterable[Line]]


def say(*lines: Line) -> Script:
    """The same lines for every request."""
    return lambda _request: lines


ANSWERS = say("Let me think</think>Hello world")


class Actor:
    """Plays the script for one request after another."""

    def __init__(self, tokenizer: Tokenizer, script: Script) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self.submitted: list[Submit] = []
        self.aborted: set[str] = set()
        self.ended: list[Event] = []
        self.closing = threading.Event()

    def play(self, requests: Sequence[Submit], put: Callable[[Event], None]) -> None:
        """Events of all requests, in turns; returns when all have ended."""
        active = {request.request_id: self._events(request) for request in requests}
        while active and not self.closing.is_set():
            for request_id, events in list(active.items()):
                event = next(events)
                if not isinstance(event, Delta):
                    del active[request_id]
                    self.ended.append(event)
                put(event)

    def _events(self, request: Submit) -> Iterator[Event]:
        num_tokens = 0

        def end(reason: str, stop_token_id: int | None = None) -> Finished:
            usage = Usage(len(request.prompt_ids), num_tokens, 3, 0.01, 0.05, 0.25)
            return Finished(request.request_id, reason, usage, stop_token_id)  # type: ignore[arg-type]

        for line in self.script(request):
            if isinstance(line, Fail):
                yield Failed(request.request_id, line.error.info())
                return
            if isinstance(line, End):
                yield end(line.reason)
                return
            if isinstance(line, Gate | Sleep):
                self._pause(line, request.request_id)
                tokens: list[int] = []
            else:
                tokens = self.tokenizer.encode(line, add_special_tokens=False) if isinstance(line, str) else line
            for token_id in tokens:
                if request.request_id in self.aborted:
                    break
                num_tokens += 1
                yield Delta(request.request_id, [token_id], self._logprobs(request, token_id))
                if num_tokens == request.params.max_tokens:
                    yield end("length")
                    return
            if request.request_id in self.aborted:
                yield end("abort")
                return
        num_tokens += 1
        yield end("stop", self.tokenizer.eos_ids[0])

    def _pause(self, line: Gate | Sleep, request_id: str) -> None:
        opened = line.opened if isinstance(line, Gate) else threading.Event()
        limit = 10_000 if isinstance(line, Gate) else int(line.seconds / 0.005)
        for _ in range(limit):
            if request_id in self.aborted or self.closing.is_set() or opened.wait(0.005):
                return

    def _logprobs(self, request: Submit, token_id: int) -> list[TokenLogprob] | None:
        wanted = request.params.logprobs
        if wanted is None:
            return None
        top = [(token_id, -0.5), (0, -1.5), (1, float("-inf"))]
        return [TokenLogprob(token_id, -0.5, top[:wanted])]


def ready_info(directory: Path, *, max_context_tokens: int = 64, boot_id: str = "boot-1") -> EngineInfo:
    """An engine that is ready to serve the tokenizer in ``directory``."""
    model = ModelInfo(
        name="tiny-r1",
        directory=str(directory),
        max_context_tokens=max_context_tokens,
        vocab_size=512,
        requested_quant="auto",
        quant="w8a8",
        kernels={"int8_gemm": "reference"},
        weight_bytes={"int8": 1000, "float32": 24},
        load_s=1.5,
        created=1_700_000_000,
        int8_products={"brg_matmul:avx512_core_vnni": 112, "own:avx2": 1},
        vector_isa="avx2",
        onednn_version="3.6.2",
        isa_caps={"PADDLE_DS_MAX_ISA": "avx2"},
        kv_dtype="int8",
        kv_scales="static",
    )
    return EngineInfo(boot_id, "ready", 1, 1.0, model)


STATS = Stats(2, 5, 100, 75, 123_456, 1000, 2000, 300, 1, {"int8_gemm@cpu": 7}, bad_frames_total=2)


class FakeStream:
    """In lockstep, ``get(0)`` finds nothing: each event is seen on its own, and transcripts are the same every time."""

    def __init__(self, actor: Actor, requests: Sequence[Submit], lockstep: bool) -> None:
        self._actor = actor
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._unfinished = {request.request_id for request in requests}
        self._lockstep = lockstep
        self._thread = threading.Thread(target=actor.play, args=(requests, self._events.put), daemon=True)
        self._thread.start()
        if not lockstep:
            self._thread.join()

    def get(self, timeout_s: float | None = None) -> Event | None:
        if timeout_s == 0 and self._lockstep:
            return None
        try:
            event = self._events.get(block=timeout_s != 0, timeout=timeout_s)
        except queue.Empty:
            return None
        if not isinstance(event, Delta):
            self._unfinished.discard(event.request_id)
        return event

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        self._actor.aborted |= self._unfinished if request_ids is None else self._unfinished & set(request_ids)


class FakeEngine:
    """The client's shape over a script. ``burst``: all events are there before the first is read."""

    def __init__(self, directory: Path, script: Script = ANSWERS, *, burst: bool = False) -> None:
        self.info: EngineInfo | None = ready_info(directory)
        self.stats: Stats | None = STATS
        self.connected = True
        self.refusal: PaddleDSError | None = None
        self.burst = burst
        self.actor = Actor(Tokenizer.from_dir(directory), script)

    def submit(self, requests: Sequence[Submit]) -> FakeStream:
        if not self.connected:
            raise EngineUnavailable("gone")
        if self.refusal is not None:
            raise self.refusal
        self.actor.submitted.extend(requests)
        return FakeStream(self.actor, requests, lockstep=not self.burst)

    def close(self) -> None:
        self.actor.closing.set()

    @property
    def last(self) -> Submit:
        """The request that was submitted last."""
        return self.actor.submitted[-1]


class IpcEngine:
    """The script behind the engine's end of the real socket, for real HTTP workers."""

    def __init__(self, socket_path: Path, directory: Path, script: Script = ANSWERS) -> None:
        self.actor = Actor(Tokenizer.from_dir(directory), script)
        self._server = EngineServer(socket_path, ready_info(directory, max_context_tokens=4096))
        #: an event for one worker, or a word to all; sent by one thread, as the server's socket demands
        self._outbox: queue.SimpleQueue[tuple[bytes, Event] | EngineInfo | Stats | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._receive, daemon=True), threading.Thread(target=self._send)]
        for thread in self._threads:
            thread.start()

    def fail_with(self, error: ErrorInfo) -> None:
        """Tell the workers that the engine failed."""
        self._outbox.put(EngineInfo("boot-1", "failed", 1, 0.0, None, error))

    def broadcast_stats(self, stats: Stats = STATS) -> None:
        """One Stats frame to every worker."""
        self._outbox.put(stats)

    def close(self) -> None:
        self.actor.closing.set()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(timeout=5)
        self._server.close()

    def _receive(self) -> None:
        while not self.actor.closing.is_set():
            arrived = self._server.receive(0.05)
            if arrived is None or isinstance(arrived, WorkerGone):
                continue
            if isinstance(arrived.message, Abort):
                self.actor.aborted.update(arrived.message.request_ids)
                continue
            self.actor.submitted.append(arrived.message)
            client = arrived.client
            put = lambda event, client=client: self._outbox.put((client, event))  # noqa: E731
            threading.Thread(target=self.actor.play, args=([arrived.message], put), daemon=True).start()

    def _send(self) -> None:
        while (item := self._outbox.get()) is not None:
            if not isinstance(item, tuple):
                self._server.broadcast(item)
                continue
            client, event = item
            step = (
                Step(deltas=[event])
                if isinstance(event, Delta)
                else Step(finished=[event])
                if isinstance(event, Finished)
                else Step(failed=[event])
            )
            self._server.send(client, step)
