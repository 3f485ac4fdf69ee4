"""Files in ``deploy/``: what can be known of them without a container engine, a cluster or a machine to install them on."""

from __future__ import annotations

import configparser
import fnmatch
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from paddle_ds import settings
from paddle_ds.logs import JsonFormatter
from paddle_ds_serving.command import serve

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "paddle-ds.service"
#: HTTP workers and the engine may take so long after the grace period, see supervisor.py
AFTER_GRACE_S = 15
VARIABLES = {variable.name for variable in settings.TABLE}
PINNED = re.compile(r"^[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?$")

Instruction = tuple[str, str]


def dockerfile() -> list[Instruction]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def final_stage() -> list[Instruction]:
    found = dockerfile()
    last = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def copied_sources() -> list[str]:
    copies = [shlex.split(rest) for word, rest in dockerfile() if word == "COPY"]
    return [source for copy in copies if not copy[0].startswith("--from") for source in copy[:-1]]


def is_ignored(path: str) -> bool:
    """The rules of .dockerignore that are used here: the last line that matches the path or a folder above it decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        parts = path.split("/")
        tops = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        anywhere = pattern.removeprefix("**/")
        if any(fnmatch.fnmatchcase(top, pattern) for top in tops) or (
            anywhere != pattern and any(fnmatch.fnmatchcase(part, anywhere) for part in parts)
        ):
            ignored = not line.startswith("!")
    return ignored


def test_base_images_are_pinned_and_the_same() -> None:
    arguments = dict(rest.split("=", 1) for word, rest in dockerfile() if word == "ARG")
    bases = [rest.split()[0] for word, rest in dockerfile() if word == "FROM"]
    assert set(bases) == {"${PYTHON_IMAGE}"}
    assert PINNED.match(arguments["PYTHON_IMAGE"])


def test_the_final_image_has_no_compiler_and_is_not_root() -> None:
    stage = final_stage()
    assert not re.search(r"\b(g\+\+|gcc|clang|build-essential|make)\b", " ".join(rest for word, rest in stage if word == "RUN"))
    users = [rest for word, rest in stage if word == "USER"]
    assert users == ["10001:10001"]
    after = [word for word, _ in stage[[word for word, _ in stage].index("USER") :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)


def test_the_image_has_a_health_check_and_takes_signals_itself() -> None:
    stage = dict(final_stage())
    command = json.loads(stage["HEALTHCHECK"].partition(" CMD ")[2])
    assert command == ["python", "/opt/paddle-ds/healthcheck.py"]
    assert any(rest.split() == ["deploy/healthcheck.py", command[1]] for word, rest in final_stage() if word == "COPY")
    assert isinstance(json.loads(stage["ENTRYPOINT"]), list)  # no shell in between that would swallow SIGTERM
    assert stage["STOPSIGNAL"] == "SIGTERM"


def test_packages_are_installed_with_hashes_or_from_the_wheel_alone() -> None:
    text = " && ".join(rest for word, rest in dockerfile() if word == "RUN")
    installs = [part for part in text.split("&&") if "pip install" in part or "pip wheel" in part]
    assert len(installs) == 3
    for part in installs:
        assert "--no-deps" in part
        assert "--require-hashes" in part or "--no-index" in part or "--no-build-isolation" in part


def test_every_copied_file_exists_and_reaches_the_build() -> None:
    assert len(copied_sources()) > 5
    for source in copied_sources():
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source
    for path in (".git/config", ".venv/bin/python", "tests/e2e/server.py", "paddle_ds/__pycache__/x.pyc", "deploy/Dockerfile"):
        assert is_ignored(path), path


def test_what_is_copied_is_enough_for_the_wheel(tmp_path: Path) -> None:
    """All that the image's build sees, without the lock's packages and without operators, which take minutes."""
    tree = tmp_path / "src"
    for source in copied_sources():
        target = tree / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build"))
        else:
            shutil.copyfile(ROOT / source, target)
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(tmp_path / "wheels"), "."]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (tmp_path / "wheels").iterdir()
    names = set(zipfile.ZipFile(made).namelist())
    for package, folder in (("paddle_ds", "."), ("paddle_ds_serving", "serving"), ("paddle_ds_slim", "slim")):
        modules = {str(path.relative_to(ROOT / folder)) for path in (ROOT / folder / package).rglob("*.py")}
        assert modules - names == set()
    assert "paddle_ds/devices/profiles/npu.yaml" in names


class _Answers(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health/live" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def live_server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), type("Handler", (_Answers,), {})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def check_health(port: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY / "healthcheck.py"), f"http://127.0.0.1:{port}/health/live"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_health_check_follows_the_server(live_server: HTTPServer) -> None:
    assert check_health(live_server.server_port).returncode == 0
    live_server.RequestHandlerClass.status = 503  # type: ignore[attr-defined]
    done = check_health(live_server.server_port)
    assert (done.returncode, "503" in done.stderr) == (1, True)


def test_health_check_of_no_server_fails_with_the_reason(live_server: HTTPServer) -> None:
    port = live_server.server_port
    live_server.socket.close()
    done = check_health(port)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def options_of(arguments: list[str]) -> set[str]:
    return {argument for argument in arguments if argument.startswith("--")}


SERVE_OPTIONS = {name for parameter in serve.params for name in parameter.opts}


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def test_compose_names_only_what_is_there() -> None:
    file = compose()
    services, volumes = file["services"], set(file["volumes"])
    assert {"paddle-ds", "redis", "prometheus", "grafana"} <= set(services)
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for mount in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount).split(":")[0]
            if source != "./models":  # the reader's own
                assert source in volumes or (DEPLOY / source).is_file(), mount
    build = services["paddle-ds"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_compose_pins_images_and_opens_nothing_to_the_network() -> None:
    for name, service in compose()["services"].items():
        if "build" not in service:
            assert PINNED.match(service["image"]), name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service["restart"] == "unless-stopped", name


def test_compose_runs_the_server_with_options_and_variables_it_has() -> None:
    service = compose()["services"]["paddle-ds"]
    environment = {name for name in service["environment"] if name.startswith("PADDLE_DS_")}
    image = set(re.findall(r"\bPADDLE_DS_[A-Z_]+(?==)", dict(final_stage())["ENV"]))
    assert environment | image <= VARIABLES
    entry = json.loads(dict(final_stage())["ENTRYPOINT"])
    assert options_of(entry + service["command"]) <= SERVE_OPTIONS
    grace_s = float(service["command"][service["command"].index("--grace") + 1])
    assert float(service["stop_grace_period"].removesuffix("s")) >= grace_s + AFTER_GRACE_S


def test_compose_gives_prometheus_and_grafana_what_their_files_name() -> None:
    services = compose()["services"]
    prometheus = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text(encoding="utf-8"))
    mounted = {mount.split(":")[1] for mount in services["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} <= mounted
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.split(":")[0] in services
    source = yaml.safe_load((DEPLOY / "compose/grafana/datasource.yml").read_text(encoding="utf-8"))["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((DEPLOY / "compose/grafana/dashboards.yml").read_text(encoding="utf-8"))["providers"][0]
    dashboards = [mount.split(":")[1] for mount in services["grafana"]["volumes"]]
    assert any(path.startswith(provider["options"]["path"]) for path in dashboards)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (package prometheus)")
def test_promtool_accepts_the_configuration_of_compose(tmp_path: Path) -> None:
    monitoring = ROOT / "configs" / "monitoring"
    for file in (DEPLOY / "compose" / "prometheus.yml", monitoring / "recording.yml", monitoring / "alerts.yml"):
        shutil.copy(file, tmp_path)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def test_unit_lets_streams_finish_and_comes_back() -> None:
    service = unit()["Service"]
    command = shlex.split(service["ExecStart"])
    grace_s = float(command[command.index("--grace") + 1])
    assert float(service["TimeoutStopSec"]) >= grace_s + AFTER_GRACE_S
    assert (service["KillMode"], service["Restart"], service["NoNewPrivileges"]) == ("mixed", "always", "yes")
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"
    assert options_of(command) <= SERVE_OPTIONS
    assert set(re.findall(r"^Environment=(PADDLE_DS_\w+)=", UNIT.read_text(encoding="utf-8"), re.MULTILINE)) <= VARIABLES


def analyze(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """With a program and a user that are here; verification looks for both."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/paddle-ds/bin/paddle-ds", "/bin/true")
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE), encoding="utf-8")
    command = ["systemd-analyze", *arguments, str(copy)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit_without_a_word(tmp_path: Path) -> None:
    done = analyze(tmp_path, "verify")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def elk(name: str) -> Any:
    return json.loads((DEPLOY / "elk" / name).read_text(encoding="utf-8"))


def test_elastic_knows_every_field_of_a_requests_line(
    make_server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")  # ids for the log, and nothing sent
    server = make_server(environ={"PADDLE_DS_LOG_PROMPTS": "1", "PADDLE_DS_TRACING": "1"})
    with caplog.at_level(logging.INFO, logger="paddle_ds_serving"):
        server.chat(stream=True)
        server.chat(temperature=9)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    written = {key for line in lines if line["event"] == "http.request" for key in line}
    known = elk("index-template.json")["template"]["mappings"]["properties"]["paddle_ds"]["properties"]
    assert {
        "request_id",
        "response_id",
        "num_prompt_tokens",
        "first_token_s",
        "finish_reasons",
        "total_s",
        "error_code",
    } <= written
    assert written - known.keys() == {"time"}
    copied = [step["set"]["copy_from"] for step in elk("ingest-pipeline.json")["processors"] if "set" in step]
    assert {name.removeprefix("paddle_ds.") for name in copied} <= written


def test_elastic_knows_every_field_of_nginxs_line() -> None:
    text = (DEPLOY / "nginx" / "paddle-ds.conf").read_text(encoding="utf-8")
    written = set(re.findall(r'"([a-z_]+)":', text[text.index("log_format") : text.index("server {")]))
    known = elk("index-template.json")["template"]["mappings"]["properties"]["paddle_ds"]["properties"]
    assert written - known.keys() == {"time"}


def test_filebeat_puts_fields_where_the_pipeline_looks_for_them() -> None:
    beat = yaml.safe_load((DEPLOY / "elk" / "filebeat.yml").read_text(encoding="utf-8"))
    assert beat["processors"][0]["decode_json_fields"]["target"] == "paddle_ds"
    assert fnmatch.fnmatchcase(beat["output.elasticsearch"]["index"], elk("index-template.json")["index_patterns"][0])
