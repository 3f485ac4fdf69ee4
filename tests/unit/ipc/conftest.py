"""Both ends of a real socket in a directory of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ipc_helpers import RawSocket, ScriptedEngine, eventually

from paddle_ds.ipc.client import EngineClient


@pytest.fixture
def socket_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pds-") as directory:  # the path of a Unix socket must be short
        yield Path(directory) / "engine.sock"


@pytest.fixture
def start_engine(socket_path: Path) -> Iterator[Callable[..., ScriptedEngine]]:
    started: list[ScriptedEngine] = []

    def start(boot_id: str = "boot-1", state: str = "ready") -> ScriptedEngine:
        started.append(ScriptedEngine(socket_path, boot_id, state))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


@pytest.fixture
def client(socket_path: Path) -> Iterator[EngineClient]:
    made = EngineClient(socket_path)
    yield made
    made.close()


@pytest.fixture
def connect(socket_path: Path) -> Iterator[Callable[..., RawSocket]]:
    """A worker that speaks raw frames."""
    made: list[RawSocket] = []

    def make(identity: str = "raw") -> RawSocket:
        made.append(RawSocket.worker(socket_path, identity))
        return made[-1]

    yield make
    for raw in made:
        raw.close()


@pytest.fixture
def engine(start_engine: Callable[..., ScriptedEngine], client: EngineClient) -> ScriptedEngine:
    """An engine that is ready, and ``client`` connected to it."""
    made = start_engine()
    eventually(lambda: client.connected)
    return made
