"""Fixtures: a tiny tokenizer on disk, an application over a scripted engine, and real Gunicorn servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import ANSWERS, FakeEngine, Script
from flask import Flask
from flask.testing import FlaskClient
from gunicorn_process import GunicornProcess
from tiny_tokenizer import write_tokenizer

from paddle_ds import settings
from paddle_ds_serving.app import create_app


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tiny-r1"))


class Server:
    """An application, its engine, and a client that runs every response to its end."""

    def __init__(self, engine: FakeEngine, **options: Any) -> None:
        environ = options.pop("environ", {})
        self.engine = engine
        self.app: Flask = create_app(
            engine, settings.load(environ), make_id=lambda: "0" * 24, unix_s=lambda: 1_700_000_000, **options
        )
        self.client: FlaskClient = self.app.test_client()

    def post(self, path: str, body: dict[str, Any], **options: Any) -> Any:
        return self.client.post(path, json=body, buffered=True, **options)

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, buffered=True, **options)

    def chat(self, **body: Any) -> Any:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], **body})

    def complete(self, **body: Any) -> Any:
        return self.post("/v1/completions", {"prompt": "Hello", **body})


@pytest.fixture
def make_server(tokenizer_dir: Path) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(script: Script = ANSWERS, *, burst: bool = False, directory: Path | None = None, **kw: Any) -> Server:
        made.append(Server(FakeEngine(directory or tokenizer_dir, script, burst=burst), **kw))
        return made[-1]

    yield make
    for server in made:
        server.engine.close()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server()


@pytest.fixture
def start_gunicorn(tmp_path: Path, tokenizer_dir: Path) -> Iterator[Callable[..., GunicornProcess]]:
    started: list[GunicornProcess] = []

    def start(script: Script = ANSWERS, **kw: Any) -> GunicornProcess:
        started.append(GunicornProcess(tmp_path / str(len(started)), tokenizer_dir, script, **kw))
        return started[-1]

    yield start
    for process in started:
        process.close()
