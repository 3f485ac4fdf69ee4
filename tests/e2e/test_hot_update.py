"""Another checkpoint under a running server: nothing is lost, nothing is mixed, nothing bad gets in."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from click.testing import CliRunner

from e2e import changed_models
from e2e.server import Server, chat_body, events, serve
from paddle_ds.errors import PaddleDSError
from paddle_ds_serving import update_command
from paddle_ds_serving.supervision import control

QUESTION = "12+7"


def eventually(check: Callable[[], bool], limit_s: float = 20.0) -> bool:
    """Whether ``check()`` becomes true before a generous limit."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if check():
            return True
        time.sleep(0.05)
    return False


class Updated:
    """A server and the ways to change its model."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.runtime_dir = server.log.parent / "run"
        self.other = str(changed_models.swap_digits(directory / "other"))

    def ask(self, op: str, **arguments: Any) -> Any:
        return control.ask(control.find(self.runtime_dir), op, timeout_s=120, **arguments)

    def status(self) -> Any:
        return self.ask("status")

    def answer(self) -> tuple[str, str]:
        """Text and version of a plain answer."""
        body = chat_body(QUESTION, temperature=0)
        response = requests.post(f"{self.server.url}/v1/chat/completions", json=body, timeout=60)
        assert response.status_code == 200, response.text
        told = response.json()
        assert response.headers["x-weight-version"] == told["weight_version"]
        message = told["choices"][0]["message"]
        return f"{message['reasoning_content']}|{message['content']}", told["weight_version"]

    def streamed(self) -> tuple[str, str]:
        """The same from a stream; every chunk must tell the same version."""
        body = chat_body(QUESTION, temperature=0, stream=True)
        with requests.post(f"{self.server.url}/v1/chat/completions", json=body, stream=True, timeout=60) as response:
            assert response.status_code == 200, response.text
            *chunks, done = events(response)
        assert done == "[DONE]"
        (version,) = {chunk["weight_version"] for chunk in chunks}  # type: ignore[index]
        assert version == response.headers["x-weight-version"]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]  # type: ignore[index]
        thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
        return f"{thought}|{''.join(delta.get('content', '') for delta in deltas)}", version


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Updated]:
    directory = tmp_path_factory.mktemp("update")
    (directory / "engine.yaml").write_text("num_threads: 1")
    with serve(directory, "--config", str(directory / "engine.yaml"), "--grace", "60") as server:
        yield Updated(server, directory)


def run(command: Any, *arguments: str) -> str:
    """What a command prints, in this process."""
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_update_and_rollback_under_streams_lose_and_mix_nothing(updated: Updated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_RUNTIME_DIR", str(updated.runtime_dir))
    first = updated.answer()[1]
    over = threading.Event()
    answers: list[tuple[str, str]] = []
    problems: list[BaseException] = []

    def client(ask: Callable[[], tuple[str, str]]) -> None:
        try:
            while not over.is_set():
                answers.append(ask())
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=client, args=(updated.streamed if i % 2 else updated.answer,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert "verified against its manifest, loaded beside" in run(update_command.update, updated.other)
        second = json.loads(run(update_command.status, "--json"))["engine"]["weight_version"]
        assert updated.answer()[1] == second
        assert f"now serves {first}" in run(update_command.rollback)
        assert updated.answer()[1] == first
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == []
    texts = {version: {text for text, of in answers if of == version} for version in (first, second)}
    assert {version for _, version in answers} == {first, second}
    # greedy answers: one text a version, and the models answer differently, so a mixture would be a third
    assert [len(found) for found in texts.values()] == [1, 1]
    assert texts[first] != texts[second]


def test_nothing_is_left_to_go_back_to(updated: Updated) -> None:
    with pytest.raises(PaddleDSError) as refused:
        updated.ask("rollback")
    assert (refused.value.code, refused.value.http_status) == ("nothing_to_roll_back", 409)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (changed_models.truncated, "checkpoint_truncated_file"),
        (changed_models.wrong_hash, "checkpoint_manifest_mismatch"),
        (changed_models.not_finite, "checkpoint_tensor_not_finite"),
        (changed_models.wrong_architecture, "checkpoint_unknown_architecture"),
        (changed_models.knows_nothing, "checkpoint_canary_failed"),
        (lambda out: None, "checkpoint_not_found"),
    ],
    ids=["truncated", "wrong-hash", "nan", "architecture", "canary", "absent"],
)
def test_a_bad_checkpoint_is_refused_and_the_old_one_serves(updated: Updated, spoil: Callable[[Path], None], code: str) -> None:
    before = updated.answer()
    bad = updated.directory / code
    spoil(bad)
    with pytest.raises(PaddleDSError) as refused:
        updated.ask("load", path=str(bad))
    assert refused.value.code == code
    status = updated.status()
    assert status["update"]["last_error"] == refused.value.message
    assert (status["accepting"], status["engine_restarts"]) == (True, 0)
    assert updated.answer() == before


def test_a_new_engine_that_is_killed_while_it_loads_is_a_refusal(updated: Updated) -> None:
    before = updated.answer()
    old = updated.status()["engine"]["pid"]

    def kill_the_new_one() -> None:
        while True:
            for child in psutil.Process(updated.server.process.pid).children():
                if child.pid not in known:
                    child.kill()
                    return

    known = {child.pid for child in psutil.Process(updated.server.process.pid).children()}
    killer = threading.Thread(target=kill_the_new_one)
    killer.start()
    with pytest.raises(PaddleDSError, match="died while it loaded"):
        updated.ask("load", path=updated.other)
    killer.join()
    assert (updated.status()["engine"]["pid"], updated.answer()) == (old, before)


def test_a_drained_server_takes_no_requests_until_it_is_told_to(updated: Updated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_RUNTIME_DIR", str(updated.runtime_dir))
    assert "no new requests are taken" in run(update_command.drain)
    refused = requests.post(f"{updated.server.url}/v1/chat/completions", json=chat_body("1+1"), timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert updated.server.health()[0] == 503
    assert "drained" in run(update_command.status)
    assert "requests are taken" in run(update_command.drain, "--off")
    updated.answer()


def test_what_is_killed_after_an_update_comes_back_with_the_new_model(updated: Updated) -> None:
    version = updated.ask("load", path=updated.other)["weight_version"]
    workers = [p for p in updated.server.family() if "gunicorn" in " ".join(p.cmdline()) and not p.children()]
    os.kill(updated.status()["engine"]["pid"], signal.SIGKILL)
    for worker in workers:
        worker.kill()
    psutil.wait_procs(workers, timeout=10)
    updated.server.wait_ready()
    assert updated.answer()[1] == version
    assert updated.status()["engine_restarts"] == 1
    assert "paddle_ds:engine_restarts_total 1.0" in requests.get(f"{updated.server.url}/metrics", timeout=60).text


def test_an_engine_that_keeps_dying_after_an_update_is_taken_back(updated: Updated) -> None:
    before, restarts = updated.answer(), updated.status()["engine_restarts"]
    updated.ask("load", path=str(changed_models.copy_model(updated.directory / "dying")))
    for number in range(1, 6):
        assert eventually(lambda: updated.status()["engine"]["state"] == "ready", 60)
        os.kill(updated.status()["engine"]["pid"], signal.SIGKILL)
        assert eventually(lambda number=number: updated.status()["engine_restarts"] == restarts + number)
    assert eventually(lambda: bool(updated.status()["rolled_back_because"]), 60)
    assert "5 failures in a row" in updated.status()["rolled_back_because"]
    updated.server.wait_ready()
    assert updated.answer() == before


def test_admin_routes_never_work_without_a_key(updated: Updated) -> None:
    for method, path in (("GET", "status"), ("POST", "models/load"), ("POST", "rollback"), ("POST", "drain")):
        response = requests.request(method, f"{updated.server.url}/admin/{path}", json={"path": updated.other}, timeout=60)
        assert response.status_code == 403


def test_a_configuration_is_reloaded_and_a_bad_one_refused(updated: Updated) -> None:
    for text, event in (("scheduler: {max_runing_requests: 3}", "reload.refused"), ("num_threads: 1", "reload.unchanged")):
        (updated.directory / "engine.yaml").write_text(text)
        updated.server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda event=event: event in updated.server.log.read_text())
    updated.answer()


def test_sigterm_cuts_no_stream_and_leaves_no_process_and_no_socket(updated: Updated) -> None:
    family = updated.server.family()
    begun = threading.Barrier(9)

    def stream(index: int) -> list[Any]:
        body = chat_body("1+1", stream=True, ignore_eos=True, max_tokens=60)
        with requests.post(f"{updated.server.url}/v1/chat/completions", json=body, stream=True, timeout=60) as response:
            frames = events(response)
            first = next(frames)
            begun.wait(timeout=60)
            return [first, *frames]

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, index) for index in range(8)]
        begun.wait(timeout=60)
        updated.server.process.send_signal(signal.SIGTERM)
        ends = [future.result()[-2:] for future in streams]
    assert [(chunk["choices"][0]["finish_reason"], done) for chunk, done in ends] == [("length", "[DONE]")] * 8
    assert updated.server.process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert list(updated.runtime_dir.glob("serve-*")) == []
