"""The script behind ``paddle_ds.ipc``: ``python -m ipc_bench.zeromq_engine SOCKET``. The loop is the engine process's own."""

from __future__ import annotations

import collections
import os
import secrets
import signal
import sys
from pathlib import Path

from ipc_bench import script
from paddle_ds.ipc.messages import Abort, Delta, EngineInfo, EngineState, Finished, Step, Usage
from paddle_ds.ipc.parent import end_with_parent
from paddle_ds.ipc.server import EngineServer, FromWorker, WorkerGone

_IDLE_S = 0.25


class Loop:
    """Moves requests from the socket into the script and frames back out."""

    def __init__(self, server: EngineServer) -> None:
        self._server = server
        self._script = script.Script()

    def run(self, signals: list[int]) -> None:
        """Until a signal has come."""
        while not signals:
            self._take_messages(0 if self._script.has_work else _IDLE_S)
            if self._script.has_work:
                script.wait_for_step()
                self._take_messages(0)
                self._publish(self._script.step())

    def _take_messages(self, wait_s: float) -> None:
        received = self._server.receive(wait_s)
        while received is not None:
            self._handle(received)
            received = self._server.receive(0)

    def _handle(self, received: FromWorker | WorkerGone) -> None:
        owner = received.client.decode()
        if isinstance(received, WorkerGone):
            self._script.abort_owner(owner)
        elif isinstance(received.message, Abort):
            self._script.abort(received.message.request_ids)
            ends = [Finished(request_id, "abort", Usage(0, 0)) for request_id in received.message.request_ids]
            self._server.send(received.client, Step(finished=ends))
        else:
            submit = received.message
            assert submit.params.max_tokens is not None
            self._script.add(submit.request_id, owner, len(submit.prompt_ids), submit.params.max_tokens)

    def _publish(self, frames: list[script.Frame]) -> None:
        steps: dict[str, Step] = collections.defaultdict(lambda: Step(deltas=[], finished=[]))
        for frame in frames:
            steps[frame.owner].deltas.append(Delta(frame.request_id, [frame.stamp_ns]))
            if frame.is_last:
                steps[frame.owner].finished.append(Finished(frame.request_id, "length", Usage(0, 0)))
        for owner, step in steps.items():
            self._server.send(owner.encode(), step)


def main() -> None:
    """Entry point."""
    # not an Event: a second signal within its set() would wait for the lock that the first one holds
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: signals.append(signum))
    end_with_parent()
    boot_id = secrets.token_hex(8)

    def info(state: EngineState) -> EngineInfo:
        return EngineInfo(boot_id, state, os.getpid())

    server = EngineServer(Path(sys.argv[1]), info("loading"))
    script.load()
    server.broadcast(info("ready"))
    Loop(server).run(signals)
    server.close()


if __name__ == "__main__":
    main()
