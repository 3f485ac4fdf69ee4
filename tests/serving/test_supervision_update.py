"""Engines come and go around the pointer: updates, refusals, drains and ways back, with engines that are real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn_process import ROOT, eventually
from tiny_tokenizer import write_tokenizer

from paddle_ds.checkpoints.manifest import weight_version
from paddle_ds.config.engine import EngineConfig
from paddle_ds.errors import (
    CanaryError,
    CheckpointNotFound,
    ConfigError,
    EngineDied,
    MemoryPlanError,
    NothingToRollBack,
    PaddleDSError,
    UpdateRunning,
)
from paddle_ds_serving.supervision import fleet as fleet_module
from paddle_ds_serving.supervision.canary import CanaryConfig
from paddle_ds_serving.supervision.fleet import Fleet
from paddle_ds_serving.supervision.health import HealthWatch
from paddle_ds_serving.supervision.pointer import PointerFile
from paddle_ds_serving.supervision.reloader import Reloader
from paddle_ds_serving.supervision.updater import Updater
from paddle_ds_serving.supervisor import remove_leftovers

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def start_fake(socket_path: Path, config_path: Path) -> subprocess.Popen[bytes]:
    paths = (str(ROOT), str(ROOT / "serving"), str(Path(__file__).parent))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(Path(__file__).parent / "fake_engine_process.py")]
    command += ["--socket", str(socket_path), "--config", str(config_path)]
    return subprocess.Popen(command, env=environ, start_new_session=True)


class World:
    """A fleet whose main loop runs, and checkpoints for it."""

    def __init__(self, run_dir: Path, models: Path) -> None:
        self.run_dir = run_dir
        self._models = models
        self._names: dict[str, str] = {}
        first = self.model("first")
        self.fleet = Fleet(run_dir, EngineConfig(model=str(first)), start_fake, drain_s=60.0)
        canary = CanaryConfig("Hello", None)
        self.updater = Updater(self.fleet, canary, 60.0)
        self.health = HealthWatch(self.fleet, self.updater, canary, 1000.0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main_loop)
        self._thread.start()
        assert eventually(lambda: self.fleet.current.ready)

    def model(self, name: str, **behaviour: Any) -> Path:
        directory = write_tokenizer(self._models / name)
        (directory / "config.json").write_text(json.dumps({**CONFIG, "_name_or_path": name}))
        (directory / "fake.json").write_text(json.dumps(behaviour))
        self._names[weight_version(directory)] = name
        return directory

    @property
    def served(self) -> str:
        """Name of the model that gets the requests."""
        return self.name_of(self.fleet.current.version)

    def name_of(self, version: str) -> str:
        return self._names.get(version, version)

    def load(self, path: Path, **options: Any) -> str:
        """Update, and tell the name of what is served then."""
        return self.name_of(self.updater.load(str(path), **options).weight_version)

    def roll_back(self) -> str:
        return self.name_of(self.updater.roll_back().weight_version)

    def processes(self) -> int:
        return len(list(self.run_dir.glob("engine-*.json")))

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.fleet.stop()

    def _main_loop(self) -> None:
        while not self._over.wait(0.01):
            self.fleet.watch()
            self.health.look()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(fleet_module, "SETTLE_S", 0.1)
    with tempfile.TemporaryDirectory(prefix="pds-") as run_dir:  # a Unix socket's path has 107 bytes
        made = World(Path(run_dir), tmp_path)
        yield made
        made.close()


def test_an_update_switches_and_the_old_engine_leaves(world: World) -> None:
    old = world.fleet.current
    done = world.updater.load(str(world.model("second")))
    names = [world.name_of(version) for version in (done.weight_version, done.previous_version)]
    assert (names, done.mode) == (["second", "first"], "beside")
    assert not done.manifest_verified
    pointer = PointerFile(world.run_dir).read()
    assert pointer is not None
    assert (pointer.generation, pointer.socket, pointer.next_socket) == (2, world.fleet.current.socket, None)
    assert eventually(lambda: old.child.ended)
    assert eventually(lambda: world.processes() == 1)


def test_the_served_name_stays(world: World) -> None:
    world.load(world.model("second"))
    assert world.fleet.current.config.served_name == "tiny-r1"


def test_rollback_goes_back_step_by_step(world: World) -> None:
    for name in ("second", "third"):
        world.load(world.model(name))
    assert world.roll_back() == "second"
    assert world.roll_back() == "first"
    with pytest.raises(NothingToRollBack):
        world.updater.roll_back()


def test_the_way_back_leads_to_what_was_there_not_to_what_a_link_shows_now(world: World, tmp_path: Path) -> None:
    second, third = world.model("second"), world.model("third")
    link = tmp_path / "link"
    link.symlink_to(second)
    world.updater.load(str(link))
    link.unlink()
    link.symlink_to(third)
    world.updater.load(str(link))
    assert world.served == "third"
    assert world.roll_back() == "second"


@pytest.mark.parametrize(
    ("behaviour", "error"), [({"mute": True}, CanaryError), ({"dies": True}, EngineDied)], ids=["canary", "death"]
)
def test_a_bad_engine_is_refused(world: World, behaviour: dict[str, Any], error: type[PaddleDSError]) -> None:
    old = world.fleet.current
    with pytest.raises((error, PaddleDSError)) as refused:
        world.load(world.model("bad", **behaviour))
    assert world.updater.last_error == refused.value.message
    assert world.fleet.current is old
    assert eventually(lambda: world.processes() == 1)
    assert world.updater.history == []


def test_without_memory_for_two_it_changes_after_a_drain(world: World) -> None:
    path = str(world.model("large", needs_room=True))
    with pytest.raises(MemoryPlanError):
        world.updater.load(path, may_drain=False)
    assert world.served == "first"
    done = world.updater.load(path)
    assert (done.mode, world.served) == ("after_drain", "large")
    assert world.fleet.refusal == ""
    assert eventually(lambda: world.processes() == 1)


def test_a_bad_checkpoint_after_a_drain_brings_the_old_one_back(world: World) -> None:
    with pytest.raises(PaddleDSError, match="mute"):
        world.load(world.model("large", needs_room=True, mute=True))
    assert world.served == "first"
    assert world.fleet.current.ready
    assert world.fleet.refusal == ""


def test_one_update_at_a_time(world: World) -> None:
    problems: list[PaddleDSError] = []
    second = str(world.model("second"))
    load = world.fleet.join

    def join(config: EngineConfig) -> Any:
        with pytest.raises(UpdateRunning) as refused:
            world.updater.load(second)
        problems.append(refused.value)
        return load(config)

    world.fleet.join = join  # type: ignore[method-assign]
    assert world.load(Path(second)) == "second"
    assert [error.http_status for error in problems] == [409]


def test_a_path_that_is_not_there_starts_nothing(world: World) -> None:
    with pytest.raises(CheckpointNotFound):
        world.updater.load("/nowhere/at/all")
    assert world.fleet.generation == 1


def test_failures_in_a_row_after_an_update_take_it_back(world: World) -> None:
    world.load(world.model("second", failure_run=5))
    assert eventually(lambda: world.served == "first" and world.fleet.current.ready)
    assert eventually(lambda: world.health.rolled_back_because.startswith("5 failures in a row after the update"))


def test_the_first_model_is_never_taken_back(world: World) -> None:
    world.load(world.model("second", failure_run=4))
    world.updater.switched_s = None
    assert not eventually(lambda: world.served != "second", limit_s=0.3)


def test_three_canaries_that_fail_restart_the_engine(world: World) -> None:
    world.load(world.model("second"))
    pid = world.fleet.current.child.pid
    mute = world.fleet.current
    mute.client.submit = lambda requests: (_ for _ in ()).throw(CanaryError("wrong"))  # type: ignore[method-assign]
    for expected in (1, 2):
        world.health.check()
        assert world.health.num_failures == expected
        assert world.fleet.current.child.pid == pid
    world.health.check()
    assert world.health.num_failures == 0
    assert eventually(lambda: mute.child.num_deaths == 1 and mute.child.pid not in (None, pid))
    assert world.fleet.num_restarts == 1


def test_a_changed_configuration_takes_effect_and_keeps_the_model(world: World) -> None:
    first = world.fleet.current.config
    world.load(world.model("second"))
    changed = dataclasses.replace(first, max_context_tokens=128)
    Reloader(world.updater, first, lambda: changed).reload()
    assert world.fleet.current.config.max_context_tokens == 128
    assert world.served == "second"
    assert world.roll_back() == "second"
    assert world.fleet.current.config.max_context_tokens is None


def test_a_configuration_that_names_another_model_changes_it(world: World) -> None:
    first = world.fleet.current.config
    Reloader(world.updater, first, lambda: dataclasses.replace(first, model=str(world.model("second")))).reload()
    assert world.served == "second"


def test_a_configuration_that_is_the_same_starts_nothing(world: World) -> None:
    first = world.fleet.current.config
    Reloader(world.updater, first, lambda: first).reload()
    Reloader(world.updater, first, None).reload()
    assert world.fleet.generation == 1


def test_a_wrong_configuration_is_refused_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def wrong() -> EngineConfig:
        raise ConfigError("engine.yaml: unknown key 'max_seq'")

    Reloader(world.updater, world.fleet.current.config, wrong).reload()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["reload.refused"]
    assert world.fleet.generation == 1


def test_what_killed_servers_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        for kind in ("serve", "metrics"):
            (tmp_path / f"{kind}-{pid}").mkdir()
    (tmp_path / "serve-notes").mkdir()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"serve-{os.getpid()}", f"metrics-{os.getpid()}", "serve-notes"}
