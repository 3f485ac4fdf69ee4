"""The Nginx configuration in ``deploy/nginx``: a real Nginx takes it, and streams pass through it event by event."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from e2e.server import Server, chat_body, events, free_port
from paddle_ds_serving.app import MAX_BODY_BYTES

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "paddle-ds.conf"
_NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(_NGINX is None, reason="nginx is not installed")


def write_configuration(directory: Path, port: int, upstream: str) -> Path:
    """The shipped file with other addresses, inside the least there must be around it; all files in ``directory``."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    changed = text.replace("listen 80;", f"listen 127.0.0.1:{port};").replace("    listen [::]:80;\n", "")
    changed = changed.replace("127.0.0.1:8000 max_fails", f"{upstream} max_fails")
    changed = changed.replace("/var/log/nginx/paddle-ds.log", str(directory / "access.log"))
    assert "/var/" not in changed
    (directory / "paddle-ds.conf").write_text(changed, encoding="utf-8")
    scratch = "".join(
        f"    {name}_temp_path {directory / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = directory / "nginx.conf"
    main.write_text(
        f"daemon off;\nuser root;\npid {directory / 'pid'};\nerror_log {directory / 'error.log'};\n"
        f"events {{}}\nhttp {{\n{scratch}    include {directory / 'paddle-ds.conf'};\n}}\n",
        encoding="utf-8",
    )
    return main


class Nginx:
    """Running, and listening."""

    def __init__(self, directory: Path, upstream: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = directory
        main = write_configuration(directory, self.port, upstream)
        command = [str(_NGINX), "-e", str(directory / "error.log"), "-c", str(main)]
        self.check = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=60, check=False)
        assert self.check.returncode == 0, self.check.stderr
        self.process = subprocess.Popen(command)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        self.close()
        raise AssertionError((directory / "error.log").read_text())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def log(self) -> list[dict[str, object]]:
        text = (self.directory / "access.log").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def until(check: Callable[[], bool], limit_s: float = 30.0) -> None:
    """Wait for what happens a moment later."""
    deadline = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def nginx(server: Server, tmp_path: Path) -> Iterator[Nginx]:
    running = Nginx(tmp_path, server.url.removeprefix("http://"))
    yield running
    running.close()


def test_nginx_accepts_the_configuration_without_a_warning(nginx: Nginx) -> None:
    assert "syntax is ok" in nginx.check.stderr
    others = [line for line in nginx.check.stderr.splitlines() if "[warn]" in line and '"user" directive' not in line]
    assert others == []


class _HalfStream(BaseHTTPRequestHandler):
    """Sends one event, and the rest only when the test says so. No header of ours asks for anything."""

    protocol_version = "HTTP/1.1"
    rest_may_come: threading.Event

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self._event(b'data: {"first": true}\n\n')
        self.rest_may_come.wait(30)
        self._event(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_event_passes_before_the_next_one_exists(tmp_path: Path) -> None:
    handler = type("Handler", (_HalfStream,), {"rest_may_come": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        nginx = Nginx(tmp_path, f"127.0.0.1:{upstream.server_port}")
        try:
            with requests.post(f"{nginx.url}/v1/chat/completions", json={}, stream=True, timeout=20) as response:
                frames = events(response)
                assert next(frames) == {"first": True}
                handler.rest_may_come.set()  # only now can the rest exist
                assert list(frames) == ["[DONE]"]
        finally:
            handler.rest_may_come.set()
            nginx.close()
            upstream.shutdown()


def test_a_client_that_leaves_ends_its_generation_through_nginx(nginx: Nginx, server: Server) -> None:
    body = chat_body("1+1", temperature=0, stream=True, ignore_eos=True, max_tokens=900)
    mine = {"x-request-id": "left-1"}
    with requests.post(f"{nginx.url}/v1/chat/completions", json=body, headers=mine, stream=True, timeout=60) as response:
        assert isinstance(next(events(response)), dict)
    server.wait_idle()
    until(lambda: '"left-1"' in server.log.read_text())
    (line,) = [line for line in server.log.read_text().splitlines() if '"left-1"' in line]
    assert json.loads(line)["finish_reasons"] == "abort"


def test_whole_streams_and_answers_pass_unchanged(nginx: Nginx, server: Server) -> None:
    for body in (chat_body("12+7", temperature=0, stream=True), chat_body("12+7", temperature=0)):
        through = requests.post(f"{nginx.url}/v1/chat/completions", json=body, timeout=60)
        direct = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert _answer(through) == _answer(direct)


def _answer(response: requests.Response) -> tuple[str, str, str]:
    """Reasoning, content and end, however many tokens share an event."""
    if response.headers["content-type"] == "application/json":
        choice = response.json()["choices"][0]
        message = choice["message"]
        return message["reasoning_content"], message["content"], choice["finish_reason"]
    *frames, last = list(events(response))
    assert last == "[DONE]"
    deltas = [frame["choices"][0]["delta"] for frame in frames if isinstance(frame, dict)]
    reasoning, content = ("".join(delta.get(key) or "" for delta in deltas) for key in ("reasoning_content", "content"))
    return reasoning, content, frames[-1]["choices"][0]["finish_reason"]  # type: ignore[index]


def test_a_request_has_one_id_in_both_logs_and_in_the_answer(nginx: Nginx, server: Server) -> None:
    body = chat_body("12+7", temperature=0, max_tokens=4)
    mine = requests.post(f"{nginx.url}/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"}, timeout=60)
    bad = requests.post(f"{nginx.url}/v1/chat/completions", json=body, headers={"x-request-id": 'a" b'}, timeout=60)
    assert mine.headers["x-request-id"] == "mine-1"
    made = bad.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    until(lambda: [line["request_id"] for line in nginx.log()] == ["mine-1", made])  # lines are written after the answers
    until(lambda: '"request_id": "mine-1"' in server.log.read_text())


def test_a_body_over_the_limit_is_told_so_in_the_servers_form(nginx: Nginx) -> None:
    response = requests.post(f"{nginx.url}/v1/completions", json={"prompt": "x" * MAX_BODY_BYTES}, timeout=60)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert f"client_max_body_size        {MAX_BODY_BYTES // 2**20}m;" in CONFIGURATION.read_text(encoding="utf-8")


def test_an_address_that_asks_too_often_is_told_when_to_come_back(nginx: Nginx) -> None:
    session = requests.Session()
    answers = [session.get(f"{nginx.url}/version", timeout=30) for _ in range(120)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert (refused[0].headers["retry-after"], refused[0].headers["retry-after-ms"]) == ("1", "1000")
    assert {session.get(f"{nginx.url}/health/ready", timeout=30).status_code for _ in range(120)} == {200}


def test_without_a_server_the_answer_is_a_typed_503(tmp_path: Path) -> None:
    nginx = Nginx(tmp_path, f"127.0.0.1:{free_port()}")
    try:
        response = requests.post(f"{nginx.url}/v1/chat/completions", json=chat_body("1+1"), timeout=30)
    finally:
        nginx.close()
    assert response.status_code == 503
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["retry-after-ms"] == "2000"
