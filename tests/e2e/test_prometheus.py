"""A real Prometheus scrapes a running server, with the rules of ``configs/monitoring``."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from e2e.server import Server, chat_body, free_port

FOLDER = Path(__file__).parents[2] / "configs" / "monitoring"
WAIT_S = 60.0

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


def until(check: Callable[[], Any], what: str) -> Any:
    """The first true result."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            found = check()
        except requests.ConnectionError:
            found = None
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {WAIT_S} s: {what}")


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **params: str) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{path}", params=params, timeout=10)
        return answer.json()["data"] if answer.status_code == 200 else None

    def value(self, query: str) -> float | None:
        found = (self.get("query", query=query) or {}).get("result")
        return float(found[0]["value"][1]) if found else None


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[Prometheus]:
    """The example configuration, with this server's address and faster clocks."""
    port = free_port()
    for name in ("recording.yml", "alerts.yml"):
        shutil.copy(FOLDER / name, tmp_path)
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = ["prometheus", "--config.file", str(tmp_path / "prometheus.yml"), "--storage.tsdb.path", str(tmp_path / "data")]
    command += ["--web.listen-address", f"127.0.0.1:{port}", "--log.level", "warn"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        running = Prometheus(f"http://127.0.0.1:{port}")
        until(lambda: requests.get(f"{running.url}/-/ready", timeout=5).ok, "Prometheus is ready")
        yield running
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_prometheus_scrapes_a_server_and_evaluates_its_rules(server: Server, prometheus: Prometheus) -> None:
    (target,) = until(lambda: prometheus.get("targets")["activeTargets"], "the server is a target")
    assert target["labels"]["job"] == "paddle-ds"
    until(lambda: prometheus.value("up") == 1, "the scrape succeeds")
    assert until(lambda: prometheus.value("paddle_ds:engine_ready"), "engine_ready") == 1
    answered = until(lambda: prometheus.value("sum(paddle_ds:http_requests_total)"), "a counter")
    for _ in range(3):
        body = chat_body("12+7", temperature=0, max_tokens=8)
        assert requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    more = "what was answered is counted"
    until(lambda: (prometheus.value("sum(paddle_ds:http_requests_total)") or 0) >= answered + 3, more)
    assert prometheus.value("paddle_ds:engine_restarts_total") == 0
    assert until(lambda: prometheus.value("instance:paddle_ds_time_to_first_token_seconds:p99_5m"), "a recorded series") > 0
    groups = prometheus.get("rules")["groups"]
    assert len(groups) == 5
    for rule in (rule for group in groups for rule in group["rules"]):
        until(lambda name=rule["name"]: _healthy(prometheus, name), f"{rule['name']} was evaluated without an error")
    firing = {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"}
    assert firing == set()


def _healthy(prometheus: Prometheus, name: str) -> bool:
    states = [rule["health"] for group in prometheus.get("rules")["groups"] for rule in group["rules"] if rule["name"] == name]
    return set(states) == {"ok"}
