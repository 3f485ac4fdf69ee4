"""An engine process without a model, for tests of what surrounds it: same arguments, same socket, scripted answers.

The "checkpoint" is a directory with a tokenizer and ``fake.json``:

    {"needs_room": false, "failure_run": 0, "mute": false, "fails": false, "dies": false, "answer": "…", "dies_later": false}
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import fake_engine
import msgspec

from paddle_ds.checkpoints.manifest import weight_version
from paddle_ds.errors import InternalError, MemoryPlanError
from paddle_ds.ipc.messages import EngineInfo, Submit
from paddle_ds.ipc.server import EngineServer


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """What is in ``fake.json``."""

    #: refuse to load while another engine is there
    needs_room: bool = False
    #: what the statistics say of failed requests
    failure_run: int = 0
    #: every request fails
    mute: bool = False
    #: cannot load
    fails: bool = False
    #: ends while it loads
    dies: bool = False
    #: what it says to every request
    answer: str = "Let me think</think>Hello world"
    #: ends at the second request; the first is the canary
    dies_later: bool = False

    def script(self) -> fake_engine.Script:
        """What it answers with."""
        if self.mute:
            return fake_engine.say(fake_engine.Fail(InternalError("mute")))
        num_asked = itertools.count()

        def lines(request: Submit) -> list[fake_engine.Line]:
            if next(num_asked) > 0 and self.dies_later:
                os._exit(3)
            return [self.answer]

        return lines


def _answers(path: Path) -> bool:
    """Whether an engine is there, and not only the file of its socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--config", type=Path)
    options = parser.parse_args()
    directory = Path(json.loads(options.config.read_text())["model"])
    behaviour = Behaviour(**json.loads((directory / "fake.json").read_text()))
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: stopping.append(signum))
    if behaviour.dies:
        sys.exit(3)
    needs_room = behaviour.needs_room and any(_answers(path) for path in options.socket.parent.glob("engine-*.sock"))
    if needs_room or behaviour.fails:
        error = MemoryPlanError("no room").info()
        server = EngineServer(options.socket, EngineInfo(f"{os.getpid()}", "failed", os.getpid(), error=error))
        while not stopping:
            time.sleep(0.01)
        server.close()
        return
    info = fake_engine.ready_info(directory, max_context_tokens=4096, boot_id=f"{os.getpid()}")
    model = msgspec.structs.replace(info.model, weight_version=weight_version(directory))
    ready = msgspec.structs.replace(info, pid=os.getpid(), model=model)
    fake_engine.ready_info = lambda *args, **kw: ready
    engine = fake_engine.IpcEngine(options.socket, directory, behaviour.script())
    stats = msgspec.structs.replace(fake_engine.STATS, num_running=0, num_waiting=0, failure_run_max=behaviour.failure_run)
    while not stopping:
        engine.broadcast_stats(stats)
        time.sleep(0.02)
    engine.close()


if __name__ == "__main__":
    main()
