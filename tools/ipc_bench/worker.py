"""The HTTP application of the bench, for Gunicorn's workers: it opens streams as handlers would and reports what it saw."""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.dirty import close_dirty_client, get_dirty_client  # type: ignore[import-untyped]

from ipc_bench.readers import READERS, Reader

# as the real application's workers have it, see docs/adr/0003-gunicorn-worker-class.md
sys.setswitchinterval(0.05)

_reader: Reader = READERS[os.environ["IPC_BENCH_ARM"]]()
_busy = threading.Lock()


def _follow(call: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    """Open one stream and read it to its end, to its failure, or to the point where the client leaves."""
    request_id = secrets.token_hex(6)
    received: list[tuple[int, int]] = []
    answer: dict[str, Any] = {"request_id": request_id, "opened_ns": time.monotonic_ns(), "received": received}
    try:
        stream = _reader.open(request_id, call.get("num_prompt", 0), call["num_frames"], call.get("version", 0))

        def leave() -> None:
            answer["left_ns"] = time.monotonic_ns()
            stream.leave()

        if "leave_after_s" in call:
            timer = threading.Timer(call["leave_after_s"], leave)
            timer.start()
        for stamp_ns in stream:
            received.append((time.monotonic_ns(), stamp_ns))
            if len(received) == call.get("leave_after_frames"):
                leave()
                break
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    finally:
        close_dirty_client()
    answer["ended_ns"] = time.monotonic_ns()
    answers.append(answer)


def _run(call: dict[str, Any]) -> dict[str, Any]:
    """``num_streams`` streams at a time, a thread each; ``exclusive`` refuses a second call meanwhile."""
    if call.get("exclusive") and not _busy.acquire(blocking=False):
        return {"busy": True}
    try:
        answers: list[dict[str, Any]] = []
        threads = [threading.Thread(target=_follow, args=(call, answers)) for _ in range(call["num_streams"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"streams": answers}
    finally:
        if call.get("exclusive"):
            _busy.release()


def _health(call: dict[str, Any]) -> dict[str, Any]:
    started_ns = time.monotonic_ns()
    return {"state": _reader.state(), "took_s": (time.monotonic_ns() - started_ns) / 1e9}


def _execute(call: dict[str, Any]) -> dict[str, Any]:
    """A dirty application's plain action."""
    return {"result": get_dirty_client(timeout=60).execute(call["app"], call["action"])}


def _abandon(call: dict[str, Any]) -> dict[str, Any]:
    """Drop a dirty stream as a Flask generator does, without closing the thread's client, and use the thread again."""
    client = get_dirty_client(timeout=60)
    stream = client.stream(call["app"], "generate", secrets.token_hex(6), 0, call["num_frames"])
    next(stream)
    del stream
    try:
        return {"next": client.execute(call["app"], "where")}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        close_dirty_client()


_CALLS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "/run": _run,
    "/health": _health,
    "/execute": _execute,
    "/abandon": _abandon,
}


def application(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """WSGI entry point."""
    call = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    answer = _CALLS[environ["PATH_INFO"]](call)
    body = json.dumps({"pid": os.getpid(), **answer}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
