"""The load tool against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from e2e.server import Server
from paddle_ds.cli.bench import bench


@pytest.mark.parametrize("mode", [["--concurrency", "4"], ["--request-rate", "50"]], ids=["concurrency", "rate"])
def test_figures_of_a_run_add_up(server: Server, mode: list[str], tmp_path: Path) -> None:
    arguments = ["serve", "--url", server.url, "--num-requests", "8", "--max-tokens", "12", "--ignore-eos", "--json", *mode]
    result = CliRunner().invoke(bench, [*arguments, "--plot", str(tmp_path / "plot.png")])
    figures = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (figures["num_ok"], figures["errors"], figures["output_tokens_mean"]) == (8, {}, 12)
    assert 0 < figures["ttft_ms"]["p50"] <= figures["ttft_ms"]["p99"] <= figures["e2e_ms"]["max"]
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_failed_requests_are_counted_and_change_the_exit_status(server: Server) -> None:
    result = CliRunner().invoke(bench, ["serve", "--url", server.url, "--model", "other", "--num-requests", "2", "--json"])
    assert result.exit_code == 1
    assert sum(json.loads(result.stdout)["errors"].values()) == 2


def test_conversations_of_a_file_are_asked(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([{"conversations": [{"from": "human", "value": "1+1"}, {"from": "gpt", "value": "2"}]}]))
    arguments = ["serve", "--url", server.url, "--num-requests", "1", "--dataset", str(file), "--json"]
    assert json.loads(CliRunner().invoke(bench, arguments).stdout)["num_ok"] == 1


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "chats.json"
    file.write_text("[1, 2]")
    result = CliRunner().invoke(bench, ["serve", "--dataset", str(file)])
    assert "ShareGPT" in str(result.exception)
