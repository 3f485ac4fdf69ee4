"""A worker that is told to end does so wherever the signal finds it, and another one takes its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from gunicorn_process import GunicornProcess, eventually

Start = Callable[..., GunicornProcess]

_CONFIG = """
import os, signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paddle_ds_serving.gunicorn_conf import *
from paddle_ds_serving.gunicorn_conf import post_fork as _post_fork
from paddle_ds_serving.http_worker import BoundedWorker

def tell(moment, signum):
    told = Path({told!r})
    if not told.exists() and Path({tell!r}).exists() and Path({tell!r}).read_text() == moment:
        told.write_text(str(os.getpid()))
        os.kill(os.getpid(), signum)

class Pool(ThreadPoolExecutor):
    def _adjust_thread_count(self):  # whoever calls this holds the pool's lock
        tell("handing over a request", signal.SIGQUIT)
        super()._adjust_thread_count()

class worker_class(BoundedWorker):
    def get_thread_pool(self):
        return Pool(max_workers=self.cfg.threads)

def post_fork(server, worker):
    tell("just forked", signal.SIGTERM)
    _post_fork(server, worker)
"""


class World:
    """A server whose worker is told to end at the moment that is written to a file."""

    def __init__(self, start: Start, directory: Path) -> None:
        self._tell = directory / "tell"
        self._told = directory / "told"
        config = directory / "ends_at_a_moment.py"
        config.write_text(_CONFIG.format(tell=str(self._tell), told=str(self._told)))
        self.server = start(config=config)

    def ask(self) -> None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{self.server.url}/health", timeout=1)

    def tell_when(self, moment: str) -> None:
        self._tell.write_text(moment)

    def has_ended(self) -> bool:
        """Whether the worker that was told is gone."""
        return self._told.exists() and not psutil.pid_exists(int(self._told.read_text() or 0))


@pytest.fixture
def world(start_gunicorn: Start, tmp_path: Path) -> World:
    return World(start_gunicorn, tmp_path)


def test_in_the_middle_of_handing_over_a_request(world: World) -> None:
    world.tell_when("handing over a request")
    world.ask()
    assert eventually(world.has_ended, 30)
    assert eventually(lambda: httpx.get(f"{world.server.url}/health/ready", timeout=30).status_code == 200)


def test_before_it_has_handlers_of_its_own(world: World) -> None:
    world.tell_when("just forked")
    (worker,) = psutil.Process(world.server.process.pid).children()
    worker.kill()  # another one is forked
    assert eventually(world.has_ended, 30)
    assert eventually(lambda: httpx.get(f"{world.server.url}/health/ready", timeout=30).status_code == 200)
