"""What happens when something dies, cannot start, or is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from e2e.server import chat_body, events, serve

#: the promise is 5 s; the rest is for a loaded test machine
NOTICED_WITHIN_S = 15.0


def test_killed_engine_fails_its_streams_and_comes_back(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        gunicorn = {process.pid for process in server.family() if "gunicorn" in " ".join(process.cmdline())}
        unready = threading.Event()

        def watch() -> None:
            while server.health()[0] == 200:
                time.sleep(0.02)
            unready.set()

        def kill() -> None:
            os.kill(server.engine_pid(), signal.SIGKILL)
            threading.Thread(target=watch, daemon=True).start()

        all_run = threading.Barrier(8, kill, timeout=60)

        def ask(index: int) -> tuple[dict[str, object], float]:
            body = chat_body("1+1", stream=True, ignore_eos=True, max_tokens=900, n=8)
            with requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=60) as response:
                frames = events(response)
                next(frames)
                all_run.wait()
                killed_s = time.monotonic()
                rest = list(frames)
            assert rest[-1] == "[DONE]"
            return rest[-2]["error"], time.monotonic() - killed_s  # type: ignore[index, return-value]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(8)))
        assert [error["code"] for error, _ in answers] == ["engine_died"] * 8
        assert max(seconds for _, seconds in answers) < NOTICED_WITHIN_S
        assert unready.wait(NOTICED_WITHIN_S)
        server.wait_ready()
        assert gunicorn <= {process.pid for process in server.family()}
        answer = requests.post(f"{server.url}/v1/chat/completions", json=chat_body("12+7", temperature=0), timeout=60)
        assert "19" in answer.json()["choices"][0]["message"]["content"]


def test_interrupt_ends_everything_and_leaves_no_process(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        family = server.family()
        assert len(family) >= 5  # supervisor, engine, Gunicorn's master and two workers
        assert server.stop(signal.SIGINT) == 0
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []
    assert not list((tmp_path / "run").glob("serve-*"))


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"], ids=["connected", "sending"]
)
def test_killed_supervisor_takes_its_children_along(tmp_path: Path, sent: bytes) -> None:
    with serve(tmp_path, "--grace", "60") as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(sent)
        time.sleep(0.5)  # until a thread waits for what is not sent
        family = server.family()
        server.stop(signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=NOTICED_WITHIN_S)
        assert alive == []


def test_killed_http_worker_is_replaced_and_its_requests_are_aborted(tmp_path: Path) -> None:
    with serve(tmp_path, "--workers", "1") as server:
        master = next(p for p in psutil.Process(server.process.pid).children() if "gunicorn" in " ".join(p.cmdline()))
        (worker,) = master.children()
        body = chat_body("1+1", stream=True, ignore_eos=True, max_tokens=900)
        with requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=60) as response:
            next(events(response))
            worker.kill()
        server.wait_ready()
        server.wait_idle()


def test_taken_port_is_a_sentence_not_a_traceback(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with serve(tmp_path, "--port", str(taken.getsockname()[1]), wait=False) as server:
            assert server.process.wait(timeout=60) == 1
    log = server.log.read_text()
    assert "cannot listen on 127.0.0.1" in log
    assert "Traceback" not in log


def test_unusable_checkpoint_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with serve(tmp_path, "--model", str(broken), wait=False) as server:
        assert server.process.wait(timeout=60) == 1
    log = server.log.read_text()
    assert "GPT2LMHeadModel" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"PADDLE_DS_API_KEYS_FILE": "keys.yaml"}, "keys.yaml"),
        ({"PADDLE_DS_JWT_KEY_FILE": "keys.yaml"}, "PADDLE_DS_JWT_AUDIENCE"),
        ({"PADDLE_DS_CONTENT_FILTER_FILE": "keys.yaml"}, "keys.yaml"),
        ({"PADDLE_DS_REDIS_URL": "redis://localhost:port"}, "PADDLE_DS_REDIS_URL"),
    ],
)
def test_a_damaged_file_ends_the_start_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.yaml").write_text("- {id: a, hash: nothing}")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with serve(tmp_path, wait=False) as server:
        assert server.process.wait(timeout=60) == 1
    log = server.log.read_text()
    assert told in log
    assert "Traceback" not in log
    assert not list((tmp_path / "run").glob("serve-*"))
