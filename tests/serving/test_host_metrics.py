"""Restarts, the memory limit and the passport's figures among the metrics; errors that are counted; prompts that are logged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_engine import Fail, say
from prometheus_client.parser import text_string_to_metric_families
from tiny_tokenizer import write_tokenizer

from paddle_ds.errors import EngineDied, ServerOverloaded
from paddle_ds.logs import JsonFormatter
from paddle_ds_serving.host_metrics import memory_limit_bytes, record_restarts


def samples(server: Any) -> dict[tuple[Any, ...], float]:
    return {
        (sample.name.removeprefix("paddle_ds:"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
    }


def test_restarts_are_what_the_supervisor_left_beside_the_socket(make_server, tmp_path: Path):
    server = make_server(environ={"PADDLE_DS_ENGINE_SOCKET": str(tmp_path / "engine.sock")})
    assert ("engine_restarts_total",) not in samples(server)
    for count in (0, 3):
        record_restarts(tmp_path, count)
        assert samples(server)[("engine_restarts_total",)] == count


def test_the_memory_limit_is_that_of_the_container_where_it_has_one(server, tmp_path: Path):
    total = psutil.virtual_memory().total
    limit = tmp_path / "memory.max"
    assert memory_limit_bytes(limit) == total
    for text, wanted in (("max\n", total), ("1048576\n", 2**20), (f"{2 * total}\n", total)):
        limit.write_text(text)
        assert memory_limit_bytes(limit) == wanted
    assert 0 < samples(server)[("memory_limit_bytes",)] <= total


def test_the_passports_figures_follow_its_file(make_server, tmp_path: Path):
    directory = write_tokenizer(tmp_path / "tiny-r1")
    server = make_server(directory=directory)
    assert not [name for name, *_ in samples(server) if name.startswith("quality")]
    passport = directory / "passport.json"
    passport.write_text(json.dumps({"kl": {"mean": 0.003}, "top1_agreement": None, "gate": {"passed": True}}))
    found = samples(server)
    assert (found[("quality_kl_mean", "tiny-r1")], found[("quality_gate_passed", "tiny-r1")]) == (0.003, 1)
    assert ("quality_top1_agreement", "tiny-r1") not in found
    passport.write_text(json.dumps({"kl": {"mean": 0.25}, "top1_agreement": 0.875, "gate": {"passed": False}}))
    found = samples(server)
    assert (found[("quality_kl_mean", "tiny-r1")], found[("quality_gate_passed", "tiny-r1")]) == (0.25, 0)
    assert found[("quality_top1_agreement", "tiny-r1")] == 0.875


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"kl": 3}', b'{"kl": {"mean": "x"}}'])
def test_a_damaged_passport_has_no_figures_and_harms_no_scrape(make_server, tmp_path: Path, content: bytes):
    directory = write_tokenizer(tmp_path / "tiny-r1")
    (directory / "passport.json").write_bytes(content)
    found = samples(make_server(directory=directory))
    assert ("engine_ready",) in found
    assert not [name for name, *_ in found if name.startswith("quality")]


def test_errors_are_counted_by_code_also_in_a_stream_whose_status_was_200(make_server):
    server = make_server(say("Let", Fail(EngineDied("lost"))))
    assert server.chat(stream=True).status_code == 200
    server.chat(temperature=9)
    server.engine.refusal = ServerOverloaded("full")
    server.chat()
    found = {key[1:]: value for key, value in samples(server).items() if key[0] == "request_errors_total"}
    assert found == {
        ("engine_died", "unavailable_error"): 1,
        ("invalid_request", "invalid_request_error"): 1,
        ("server_overloaded", "unavailable_error"): 1,
    }


def log_line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    (line,) = [line for line in lines if line["event"] == "http.request"]
    return line


def test_prompts_are_logged_only_where_that_is_asked_for(make_server, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="paddle_ds_serving"):
        make_server().complete(prompt=["Hello", " world"])
    assert "Hello" not in json.dumps(log_line(caplog))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="paddle_ds_serving"):
        make_server(environ={"PADDLE_DS_LOG_PROMPTS": "1"}).complete(prompt=["Hello", " world"])
    first, second = log_line(caplog)["prompts"]
    assert first.endswith("Hello")
    assert second.endswith(" world")
