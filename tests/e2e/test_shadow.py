"""Live traffic decides on an update: a copy agrees in every token, another model does not and is refused."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from e2e import changed_models
from e2e.server import Server, chat_body, events, serve
from paddle_ds.errors import ShadowMismatchError
from paddle_ds_serving import update_command
from paddle_ds_serving.supervision import pointer


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("shadow")
    (directory / "engine.yaml").write_text("num_threads: 1")
    with serve(directory, "--config", str(directory / "engine.yaml")) as server:
        yield server


@contextlib.contextmanager
def traffic(server: Server) -> Iterator[list[str]]:
    """Clients that ask without a pause while a comparison runs, greedy and drawn, whole and streamed; gives who answered."""
    (run_dir,) = (server.log.parent / "run").glob("serve-*")
    over = threading.Event()
    versions: list[str] = []
    problems: list[BaseException] = []

    def client(index: int) -> None:
        question = chat_body(f"1{index}+{index + 2}", temperature=0.8 * (index % 2), max_tokens=32)
        seen = pointer.PointerFile(run_dir)
        try:
            while not over.is_set():
                where = seen.read()
                assert where is not None
                if not where.shadow_percent:  # the new engine is loading, and the cores are few
                    over.wait(0.05)
                elif index < 2:
                    response = requests.post(f"{server.url}/v1/chat/completions", json=question, timeout=60)
                    assert response.status_code == 200, response.text
                    versions.append(response.json()["weight_version"])
                else:
                    body = {**question, "stream": True}
                    with requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=60) as response:
                        *chunks, done = events(response)
                    assert done == "[DONE]"
                    versions.append({chunk["weight_version"] for chunk in chunks}.pop())  # type: ignore[index]
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield versions
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == []


def update(server: Server, monkeypatch: pytest.MonkeyPatch, path: Path, *options: str) -> Any:
    monkeypatch.setenv("PADDLE_DS_RUNTIME_DIR", str(server.log.parent / "run"))
    asked = [str(path), "--shadow", "50", "--shadow-requests", "12", "--shadow-limit-s", "60", "--min-agreement", "1", *options]
    result = CliRunner().invoke(update_command.update, asked)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_a_copy_agrees_in_every_token(running: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with traffic(running):
        done = json.loads(update(running, monkeypatch, changed_models.copy_model(tmp_path / "copy"), "--json"))
    shadow = done["shadow"]
    assert (shadow["requests"], shadow["compared"], shadow["identical"], shadow["failed"]) == (12, 12, 12, 0)
    assert shadow["agreement"] == 1.0
    for times in (shadow["first_token_s"], shadow["total_s"]):
        assert all(0 < times[engine]["median"] <= times[engine]["p95"] for engine in ("old", "new"))
    assert running.health()[1]["model"]["weight_version"] == done["weight_version"]
    assert "update.shadowed" in running.log.read_text()


def test_a_model_that_answers_otherwise_is_refused(running: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = running.health()[1]["model"]["weight_version"]
    with traffic(running) as versions, pytest.raises(ShadowMismatchError, match="12 live requests") as refused:
        update(running, monkeypatch, changed_models.swap_digits(tmp_path / "other"))
    assert refused.value.code == "checkpoint_shadow_mismatch"
    assert set(versions) == {before}
    assert running.health()[1]["model"]["weight_version"] == before
