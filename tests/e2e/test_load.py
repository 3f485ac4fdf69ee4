"""Many open streams: slow readers cost the others nothing, and what is too much is refused at once."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from trials.readers import Client, Pace, Readers
from trials.sse_load import body, clients_gone, mixed

from e2e.server import serve


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_200_open_streams_of_which_20_are_slow_all_end_as_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_WRITE_TIMEOUT_S", "3")
    clients = mixed(200, 20, 180)  # large answers of 330 kB: the kernel was seen to take 94 kB for a client that reads nothing
    with serve(tmp_path, "--num-threads", "1") as server:
        pace = Pace(arrivals_per_s=400, pause_s=0.5, stopped_s=60, limit_s=200, sip_bytes=8192)
        readers = Readers(port_of(server.url), clients, pace, lambda: clients_gone(server.url) == 6)
        asyncio.run(readers.run())
        server.wait_idle()
        assert readers.outcomes == {"prompt": {"ok": 180}, "slow": {"ok": 7}, "pausing": {"ok": 7}, "stopped": {"cut off": 6}}
        assert clients_gone(server.url) == 6
    assert {client.answer.num_tokens for client in clients if client.outcome == "ok"} == {180}
    # greedy answers to the same question are the same, or something was lost or mixed up on the way
    answers = {(str(client.body["messages"]), client.answer.text) for client in clients if client.outcome == "ok"}
    assert len(answers) == len(dict(answers)) == 16


def test_more_streams_than_there_are_threads_are_refused_while_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads 8")
    clients = [Client("stopped", body(number, 200, True)) for number in range(40)]
    with serve(tmp_path, "--num-threads", "1") as server:

        def all_others_have_their_answer() -> bool:
            return sum(client.answer.ended for client in clients) + readers.num_open == len(clients)

        pace = Pace(arrivals_per_s=400, pause_s=0, stopped_s=50, limit_s=200)
        readers = Readers(port_of(server.url), clients, pace, all_others_have_their_answer)
        asyncio.run(readers.run())
        server.wait_idle()
    # a stream goes on only when all who were refused know it. With no `retry-after` the outcome would say so
    outcomes = readers.outcomes["stopped"]
    assert set(outcomes) == {"ok", "503 server_overloaded"}
    assert 6 <= outcomes["ok"] <= 12  # six threads of each of two workers may stream
    refused_s = [client.ended_s for client in clients if client.outcome != "ok"]
    assert max(refused_s) < min(client.ended_s for client in clients if client.outcome == "ok")


def test_streams_that_the_grace_period_does_not_let_finish_are_told_so(tmp_path: Path) -> None:
    clients = [Client("prompt", body(number, 900, False)) for number in range(8)]
    with serve(tmp_path, "--num-threads", "1", "--grace", "0") as server:
        readers = Readers(port_of(server.url), clients, Pace(arrivals_per_s=400, pause_s=0, stopped_s=0, limit_s=100))

        async def run() -> None:
            running = asyncio.create_task(readers.run())
            while readers.num_begun < len(clients):
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            await running

        asyncio.run(run())
        assert server.process.wait(timeout=60) == 0
    assert readers.outcomes == {"prompt": {"event engine_unavailable": 8}}
