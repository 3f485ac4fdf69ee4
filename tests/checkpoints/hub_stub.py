"""A local HTTP server that speaks as much of three hubs as PaddleNLP's downloader asks for, and can misbehave.

    GET  /models/community/{org}/{name}/{file}            Baidu's object storage
    GET  /{org}/{name}/resolve/{revision}/{file}          Hugging Face
    GET  /api/v1/repos/{org}/{name}/contents|media/{file} AI Studio

Every name serves the same files; the part after the last ``-`` says how:

    org/model-good      as it should
    org/model-flaky     the first three transfers of weights break in the middle
    org/model-dead      transfers of weights break off, from the second on before the first byte, until ``/heal``
    org/model-norange   the first transfer of weights breaks, and Range is ignored
    org/model-absent    404
    org/model-gone      503
"""

from __future__ import annotations

import collections
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path

_PATHS = (
    re.compile(r"/models/community/(?P<repo>[^/]+/[^/]+)/(?P<file>[^/]+)"),
    re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>[^/]+)"),
    re.compile(r"/api/v1/repos/(?P<repo>[^/]+/[^/]+)/(?P<view>contents|media)/(?P<file>[^/]+)"),
)


class HubStub:
    """Serves the files of a directory on a free port until closed. ``log`` holds ``METHOD path [Range]`` of each request."""

    def __init__(self, directory: Path) -> None:
        self.files: Mapping[str, bytes] = {path.name: path.read_bytes() for path in directory.iterdir()}
        self.log: list[str] = []
        self.transfers: collections.Counter[str] = collections.Counter()
        self.is_healed = False
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.stub = self  # type: ignore[attr-defined]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # no kept connections, which would go on answering after close()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        stub: HubStub = self.server.stub  # type: ignore[attr-defined]
        path = self.path.split("?")[0]
        stub.log.append(" ".join(filter(None, (self.command, path, self.headers.get("Range")))))
        if path == "/heal":
            stub.is_healed = True
            self._send(200, b"")
            return
        match = next((match for pattern in _PATHS if (match := pattern.fullmatch(path))), None)
        repo, file = (match["repo"], match["file"]) if match else ("", "")
        manner = repo.rsplit("-", 1)[-1]
        if manner == "gone":
            self._send(503, b"busy")
        elif match is None or manner == "absent" or file not in stub.files:
            self._send(404, b"no", {"X-Error-Code": "EntryNotFound"})
        elif match.groupdict().get("view") == "contents":
            etag = hashlib.sha256(stub.files[file]).hexdigest()
            answer = {"last_commit_sha": "a" * 40, "sha": etag, "git_url": "x", "size": len(stub.files[file])}
            self._send(200, json.dumps(answer).encode())
        else:
            self._send_file(stub, path, manner, stub.files[file], is_weights=file.endswith(".safetensors"))

    def _send_file(self, stub: HubStub, path: str, manner: str, content: bytes, is_weights: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and manner != "norange" else 0
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "b" * 40}
        if start >= len(content) > 0:
            self._send(416, b"", headers)
            return
        if asked and start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = content[start:]
        if self.command == "GET" and is_weights:
            stub.transfers[path] += 1
            count = stub.transfers[path]
            if (manner == "flaky" and count <= 3) or (manner == "norange" and count == 1):
                sent = sent[: len(sent) // 3]
            elif manner == "dead" and not stub.is_healed:
                sent = sent[: len(sent) // 3] if count == 1 else b""
        self._send(206 if start else 200, sent, headers, declared_bytes=len(content) - start)

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, declared_bytes: int | None = None
    ) -> None:
        length = len(body) if declared_bytes is None else declared_bytes
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            if length != len(body):
                self.close_connection = True
