"""Hub names: what is asked for, what happens when a transfer breaks, and what the user is told."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import makers
import pytest
from hub_stub import HubStub

from paddle_ds import errors
from paddle_ds.checkpoints import hub, open_checkpoint
from paddle_ds.checkpoints.hub_sources import RemoteFile, Source
from paddle_ds.settings import Settings
from paddle_ds.settings import load as load_settings


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", waited.append)
    return waited


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return dataclasses.replace(load_settings({}), cache_dir=str(tmp_path / "cache"))


class FakeHub:
    """Files in memory. ``cuts`` are bytes after which the coming transfers break; 0 sends nothing."""

    def __init__(self, files: dict[str, bytes], cuts: list[int] | None = None, is_append_blind: bool = False) -> None:
        self.files = files
        self.cuts = cuts or []
        self.is_append_blind = is_append_blind
        self.is_down = False
        self.asked: list[str] = []

    def source(self) -> Source:
        return Source("http://fake", self.look_up, self.resolve)

    def look_up(self, name: str, file_name: str, cache: Path) -> RemoteFile | None:
        if self.is_down:
            raise ConnectionError("connection refused")
        if file_name not in self.files:
            return None
        return RemoteFile(len(self.files[file_name]), cache / name / f"{file_name}.incomplete")

    def resolve(self, name: str, file_name: str, cache_dir: str, resume_download: bool) -> str | None:
        assert resume_download
        target = Path(cache_dir) / name / file_name
        if target.exists():
            return str(target)
        self.asked.append(file_name)
        partial = target.with_name(f"{file_name}.incomplete")
        partial.parent.mkdir(parents=True, exist_ok=True)
        start = partial.stat().st_size if partial.exists() else 0
        content = self.files[file_name][0 if self.is_append_blind else start :]
        cut = self.cuts.pop(0) if self.cuts and file_name.endswith(".safetensors") else None
        with partial.open("ab") as file:
            file.write(content[:cut])
        if cut is not None and cut < len(content):
            try:
                raise ConnectionResetError("reset by peer")
            except ConnectionResetError as error:
                raise OSError("Can't load the model for 'x'. Make sure you don't have a local directory") from error
        partial.rename(target)
        return str(target)


def model_files(directory: Path, num_shards: int = 1, **changes: Any) -> dict[str, bytes]:
    config = makers.config_json(**changes)
    makers.write_hf(directory, config, makers.random_tensors(config), num_shards=num_shards)
    makers.write_json(directory / "tokenizer.json", {"version": "1.0"})
    makers.write_json(directory / "generation_config.json", {})
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("num_shards", [1, 3], ids=["one file", "three shards"])
def test_fetches_what_the_index_names_and_what_is_there(tmp_path: Path, settings: Settings, num_shards: int) -> None:
    files = model_files(tmp_path / "remote", num_shards)
    directory = hub.fetch("org/name", settings, source=FakeHub({**files, "README.md": b"x", "other.bin": b"x"}).source())
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == files
    with open_checkpoint(directory) as checkpoint:
        assert len(checkpoint.stored()) == 27


def test_a_second_start_asks_nobody(tmp_path: Path, settings: Settings) -> None:
    fake = FakeHub(model_files(tmp_path / "remote"))
    first = hub.fetch("org/name", settings, source=fake.source())
    fake.is_down = True
    assert hub.fetch("org/name", settings, source=fake.source()) == first
    with open_checkpoint("org/name", settings) as checkpoint:
        assert checkpoint.directory == first
    (first / "tokenizer.json").unlink()
    with pytest.raises(errors.HubError):
        hub.fetch("org/name", settings, source=fake.source())


def test_a_broken_transfer_continues_where_it_broke(tmp_path: Path, settings: Settings, no_waiting: list[float]) -> None:
    files = model_files(tmp_path / "remote")
    fake = FakeHub(files, cuts=[1000, 2000, 0, 0, 3000])
    directory = hub.fetch("org/name", settings, source=fake.source())
    assert (directory / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert fake.asked.count("model.safetensors") == 6
    assert len(no_waiting) == 5


def test_gives_up_when_nothing_arrives_and_keeps_what_has(tmp_path: Path, settings: Settings) -> None:
    files = model_files(tmp_path / "remote")
    fake = FakeHub(files, cuts=[1000] + [0] * 20)
    with pytest.raises(errors.HubError, match="ConnectionResetError: reset by peer; 1000 bytes are kept"):
        hub.fetch("org/name", settings, source=fake.source())
    fake.cuts = []
    directory = hub.fetch("org/name", settings, source=fake.source())
    assert (directory / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_hub_that_cannot_continue_is_asked_from_the_start(tmp_path: Path, settings: Settings) -> None:
    files = model_files(tmp_path / "remote")
    fake = FakeHub(files, cuts=[1000], is_append_blind=True)
    directory = hub.fetch("org/name", settings, source=fake.source())
    assert (directory / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_an_overlong_partial_file_is_thrown_away(tmp_path: Path, settings: Settings) -> None:
    files = model_files(tmp_path / "remote")
    partial = Path(settings.cache_dir) / "hub" / "bos" / "org" / "name" / "model.safetensors.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(files["model.safetensors"] + b"junk")
    directory = hub.fetch("org/name", settings, source=FakeHub(files).source())
    assert (directory / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.parametrize(
    ("absent", "message"),
    [("config.json", r"has no config\.json"), ("model.safetensors", r"has no model\.safetensors\.index\.json or")],
)
def test_what_is_absent_is_named(tmp_path: Path, settings: Settings, absent: str, message: str) -> None:
    files = model_files(tmp_path / "remote")
    del files[absent]
    with pytest.raises(errors.HubError, match=message) as caught:
        hub.fetch("org/name", settings, source=FakeHub(files).source())
    for fact in ("'org/name'", "'bos'", "http://fake", "name that directory instead"):
        assert fact in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path, settings: Settings) -> None:
    files = model_files(tmp_path / "remote", num_shards=3)
    del files["model-00002-of-00003.safetensors"]
    with pytest.raises(errors.HubError, match=r"has no model-00002-of-00003\.safetensors"):
        hub.fetch("org/name", settings, source=FakeHub(files).source())


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, settings: Settings) -> None:
    files = model_files(tmp_path / "remote")
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"x": "../../evil.safetensors"}}).encode()
    with pytest.raises(errors.CorruptFileError, match="plain name"):
        hub.fetch("org/name", settings, source=FakeHub(files).source())


def test_no_answer_says_who_did_not(tmp_path: Path, settings: Settings) -> None:
    fake = FakeHub({})
    fake.is_down = True
    with pytest.raises(errors.HubError, match=r"does not answer about config\.json: ConnectionError: connection refused"):
        hub.fetch("org/name", settings, source=fake.source())


def test_progress_ends_at_all_bytes_of_each_file(tmp_path: Path, settings: Settings) -> None:
    files = model_files(tmp_path / "remote")
    calls: list[tuple[str, int, int]] = []
    hub.fetch("org/name", settings, lambda *call: calls.append(call), FakeHub(files).source())
    for name, content in files.items():
        assert (name, len(content), len(content)) in calls


CHILD = """
import dataclasses, json, sys, urllib.request
from paddle_ds import errors, settings as settings_module
from paddle_ds.checkpoints import hub, open_checkpoint
from paddle_ds.config.tensors import model_specs

hub.time.sleep = lambda seconds: None
url, cache = sys.argv[1:]
base = dataclasses.replace(settings_module.load({}), cache_dir=cache, hub_timeout_s=5.0)
results = {}
calls = []

def attempt(source, name, progress=None):
    try:
        with open_checkpoint(name, dataclasses.replace(base, hub_source=source), progress) as checkpoint:
            return sum(float(checkpoint.read(spec).to_float32().sum()) for spec in model_specs(checkpoint.config))
    except errors.HubError as error:
        return "HubError: " + str(error)

for source in ("bos", "huggingface", "aistudio"):
    for manner in ("good", "flaky", "absent", "gone"):
        progress = (lambda *call: calls.append(call)) if manner == "flaky" else None
        results[f"{source} {manner}"] = attempt(source, f"org/model-{manner}", progress)
results["bos norange"] = attempt("bos", "org/model-norange")
results["bos dead"] = attempt("bos", "org/model-dead")
urllib.request.urlopen(url + "/heal").read()
results["bos healed"] = attempt("bos", "org/model-dead")
print(json.dumps({"results": results, "calls": calls}))
sys.stdin.readline()
refused = {source: attempt(source, "org/model-late") for source in ("bos", "huggingface", "aistudio")}
refused["again"] = attempt("bos", "org/model-good")
print(json.dumps(refused))
"""


StubRun = tuple[HubStub, dict[str, Any], dict[str, Any], str]


@pytest.fixture(scope="module")
def stub_run(tmp_path_factory: pytest.TempPathFactory) -> StubRun:
    """The child's results against the running stub, then against the closed one, and what it wrote to standard error.

    A process of its own, because PaddleNLP reads its endpoints when it is imported; one for all tests, because the import
    takes most of the time.
    """
    root = tmp_path_factory.mktemp("hub")
    # a third of the weights is more than the megabyte that a broken transfer loses
    model_files(root / "remote", vocab_size=24_000)
    stub = HubStub(root / "remote")
    endpoints = dict.fromkeys(("PPNLP_ENDPOINT", "HF_ENDPOINT", "AISTUDIO_ENDPOINT"), stub.url)
    environment = {**os.environ, **endpoints, "HF_HOME": str(root / "hf"), "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CHILD, stub.url, str(root / "cache")]
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    first = child.stdout.readline()
    stub.close()
    rest, stderr = child.communicate("\n", timeout=120)
    assert child.returncode == 0, stderr[-3000:]
    return stub, json.loads(first), json.loads(rest), stderr


SOURCES = ["bos", "huggingface", "aistudio"]


@pytest.mark.parametrize("source", SOURCES)
def test_paddlenlp_fetches_from(stub_run: StubRun, source: str) -> None:
    results = stub_run[1]["results"]
    assert isinstance(results[f"{source} good"], float), results[f"{source} good"]
    assert results[f"{source} good"] == results["bos good"]


@pytest.mark.parametrize("source", SOURCES)
def test_paddlenlp_resumes_with_a_range(stub_run: StubRun, source: str) -> None:
    stub, first, _, _ = stub_run
    assert first["results"][f"{source} flaky"] == first["results"]["bos good"]
    marks = {"bos": "/models/", "huggingface": "/resolve/", "aistudio": "/media/"}
    asked = [line for line in stub.log if line.startswith("GET") and "flaky/" in line and marks[source] in line]
    weights = [line for line in asked if "model.safetensors" in line and "index" not in line]
    ranges = [int(line.split("bytes=")[1].rstrip("-")) for line in weights if "bytes=" in line and "bytes=0-" not in line]
    assert len(ranges) >= 3
    assert ranges == sorted(ranges)
    size = len(stub.files["model.safetensors"])
    assert ["model.safetensors", size, size] in first["calls"]


@pytest.mark.parametrize("source", SOURCES)
def test_paddlenlp_names_an_absent_model(stub_run: StubRun, source: str) -> None:
    stub, first, _, _ = stub_run
    message = first["results"][f"{source} absent"]
    assert "'org/model-absent'" in message
    assert f"the hub '{source}' at {stub.url} has no config.json" in message


@pytest.mark.parametrize("source", SOURCES)
def test_paddlenlp_passes_on_a_server_error(stub_run: StubRun, source: str) -> None:
    assert "does not answer about config.json" in stub_run[1]["results"][f"{source} gone"]
    assert "503" in stub_run[1]["results"][f"{source} gone"]


def test_a_server_without_ranges_gives_the_right_file(stub_run: StubRun) -> None:
    assert stub_run[1]["results"]["bos norange"] == stub_run[1]["results"]["bos good"]


def test_a_dead_transfer_is_given_up_and_continued_later(stub_run: StubRun) -> None:
    stub, first, _, _ = stub_run
    assert len(stub.files["model.safetensors"]) > 4_000_000
    assert "broke off sending model.safetensors: IncompleteRead" in first["results"]["bos dead"]
    assert f"{1 << 20} bytes are kept" in first["results"]["bos dead"]
    assert first["results"]["bos healed"] == first["results"]["bos good"]


@pytest.mark.parametrize("source", SOURCES)
def test_no_network_is_said_at_once(stub_run: StubRun, source: str) -> None:
    stub, _, refused, _ = stub_run
    message = refused[source]
    assert f"'org/model-late': the hub '{source}' at {stub.url} does not answer about config.json" in message
    assert "refused" in message
    assert "place the model's files" in message


def test_what_is_cached_needs_no_network(stub_run: StubRun) -> None:
    assert stub_run[2]["again"] == stub_run[1]["results"]["bos good"]


def test_paddlenlp_is_silent(stub_run: StubRun) -> None:
    assert "ccache" not in stub_run[3]
    assert "Warning" not in stub_run[3]
