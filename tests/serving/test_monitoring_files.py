"""Alert rules and dashboard in ``configs/monitoring``: they hold for what the server really exposes, and promtool agrees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from fake_engine import ANSWERS
from prometheus_client.parser import text_string_to_metric_families
from tiny_tokenizer import write_tokenizer

from paddle_ds_serving.host_metrics import record_restarts

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "monitoring"
DASHBOARD = FOLDER / "grafana" / "paddle-ds.json"
PAGE = ROOT / "docs" / "monitoring.md"
#: what profiles of chips may tell, see docs/devices/adding.md
DEVICE = ("memory_used_bytes", "memory_total_bytes", "utilization_ratio", "temperature_celsius", "power_watts")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (package prometheus)")


@pytest.fixture
def exposition(make_server, tmp_path: Path) -> str:
    """Everything that a server can tell: a device with monitoring, a checkpoint with a passport, answers, an error, a rating."""
    directory = write_tokenizer(tmp_path / "tiny-r1")
    passport = {"kl": {"mean": 0.003}, "top1_agreement": 0.98, "gate": {"passed": True}}
    (directory / "passport.json").write_text(json.dumps(passport), encoding="utf-8")
    environ = {
        "PADDLE_DS_ENGINE_SOCKET": str(tmp_path / "engine.sock"),
        "PADDLE_DS_FEEDBACK_DIR": str(tmp_path / "feedback"),
    }
    record_restarts(tmp_path, 2)
    server = make_server(ANSWERS, directory=directory, environ=environ)
    server.engine.stats = msgspec.structs.replace(server.engine.stats, device_metrics=dict.fromkeys(DEVICE, 1.0))
    assert server.chat(stream=True).status_code == 200
    assert server.chat(temperature=9).status_code == 400
    assert server.post("/v1/feedback", {"request_id": "r", "rating": "up"}).status_code == 201
    text: str = server.get("/metrics").text
    return text


def families(exposition: str) -> dict[str, set[str]]:
    """Sample names and their labels. Creation times, which are not there with several workers, are left out."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition):
        if not family.samples:  # a counter with labels that has not counted yet
            found[f"{family.name}_total"] = set()
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def rules(kind: str) -> list[dict[str, Any]]:
    files = [yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")) for name in ("recording.yml", "alerts.yml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"] if kind in rule]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"paddle_ds:[a-z0-9_]+", expression))


def recorded_in(expression: str) -> set[str]:
    return set(re.findall(r"instance:paddle_ds_[a-z0-9_]+:[a-z0-9_]+", expression))


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def run(*command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=FOLDER, input=given, capture_output=True, text=True, timeout=60, check=False)


@needs_promtool
def test_promtool_accepts_rules_and_configuration() -> None:
    done = run("promtool", "check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("promtool", "check", "rules", "recording.yml", "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules('alert'))} rules found" in done.stdout


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    done = run("promtool", "test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_rule_tests_fail_when_a_threshold_is_moved(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "moved")
    alerts = tmp_path / "moved" / "alerts.yml"
    alerts.write_text(alerts.read_text(encoding="utf-8").replace("ratio_rate5m > 0.05", "ratio_rate5m > 0.5"), encoding="utf-8")
    done = run("promtool", "test", "rules", str(tmp_path / "moved" / "alerts_test.yml"))
    assert done.returncode != 0
    assert "PaddleDSErrorRateHigh" in done.stdout + done.stderr


def test_each_alert_has_a_test_that_fires_and_one_that_does_not() -> None:
    fires: dict[str, set[bool]] = {}
    for test in yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]:
        for case in test.get("alert_rule_test", ()):
            fires.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert fires == {rule["alert"]: {True, False} for rule in rules("alert")}


@needs_promtool
def test_promtool_finds_nothing_in_the_exposition_but_the_colon_of_the_prefix(exposition: str) -> None:
    done = run("promtool", "check", "metrics", given=exposition)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "_created" not in line]
    # colons are for recorded series by convention; vLLM's names have one too, and dashboards count on it
    assert [line for line in complaints if "should not contain ':'" not in line] == []


def test_rules_use_only_what_is_exposed_with_the_labels_it_has(exposition: str) -> None:
    known = families(exposition)
    recorded = {rule["record"] for rule in rules("record")}
    for rule in [*rules("record"), *rules("alert")]:
        assert metrics_in(rule["expr"]) <= known.keys(), rule
        assert recorded_in(rule["expr"]) <= recorded, rule
        for name, matchers in re.findall(r"(paddle_ds:[a-z0-9_]+)\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"([a-z_]+)[=!]", matchers)) <= known[name], rule


def test_every_recorded_series_is_used() -> None:
    read = "\n".join([rule["expr"] for rule in [*rules("record"), *rules("alert")]] + expressions(dashboard()))
    assert {rule["record"] for rule in rules("record")} == recorded_in(read)


def test_the_dashboard_uses_only_what_is_there(exposition: str) -> None:
    known, recorded = families(exposition).keys(), {rule["record"] for rule in rules("record")}
    for expression in expressions(dashboard()):
        assert metrics_in(expression) <= known, expression
        assert recorded_in(expression) <= recorded, expression
        assert metrics_in(expression) | recorded_in(expression), expression


def test_the_dashboard_shows_every_metric(exposition: str) -> None:
    shown = set().union(*(metrics_in(expression) for expression in expressions(dashboard())))
    hidden = {re.sub(r"_(bucket|sum|count)$", "", name) for name in families(exposition)}
    assert hidden - {re.sub(r"_bucket$", "", name) for name in shown} == set()


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = dashboard()
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= board.keys()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert board["templating"]["list"][0]["type"] == "datasource"
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        where = panel["gridPos"]
        covered = {(where["x"] + dx, where["y"] + dy) for dx in range(where["w"]) for dy in range(where["h"])}
        assert max(x for x, _ in covered) < 24, panel["title"]
        assert not covered & cells, panel["title"]
        cells |= covered
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("stat", "timeseries")
        assert panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    used = {name for expr in expressions(board) for name in re.findall(r"\$([a-z]\w*)", expr)}
    assert used <= variables


@needs_promtool
def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    concrete = [
        text.replace("$__rate_interval", "5m").replace("$job", "paddle-ds").replace("$instance", ".*")
        for text in expressions(dashboard())
    ]
    assert "$" not in "".join(concrete)
    as_rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(concrete)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": as_rules}]}), encoding="utf-8")
    done = run("promtool", "check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_every_metric_and_what_to_do_about_every_alert(exposition: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    names = {re.sub(r"_(bucket|sum|count)$", "", name.removeprefix("paddle_ds:")) for name in families(exposition)}
    assert {name for name in names if f"| `{name}" not in page} == set()
    headings = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    assert headings == {rule["alert"] for rule in rules("alert")}
    for rule in rules("alert"):
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
