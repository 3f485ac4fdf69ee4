"""Engines come and go around the pointer: updates, refusals, drains and ways back, with engines that are real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_world import World, running_world
from gunicorn_process import eventually

from paddle_ds.config.engine import EngineConfig
from paddle_ds.errors import (
    CanaryError,
    CheckpointNotFound,
    ConfigError,
    EngineDied,
    InvalidRequest,
    MemoryPlanError,
    NothingToRollBack,
    PaddleDSError,
    UpdateRunning,
)
from paddle_ds_serving.supervision.pointer import PointerFile
from paddle_ds_serving.supervision.reloader import Reloader
from paddle_ds_serving.supervisor import remove_leftovers


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path) as made:
        yield made


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


def test_a_path_that_is_not_there_starts_nothing(world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would never end
    for path in ("/nowhere/at/all", "/dev/zero", "a\0b", str(tmp_path / "pipe")):
        with pytest.raises(CheckpointNotFound):
            world.updater.load(path)
    assert world.fleet.generation == 1


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 5000])
def test_what_cannot_be_a_path_is_the_questions_fault(world: World, path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        world.updater.load(path)
    assert refused.value.param == "path"


def test_an_engine_that_cannot_load_again_is_tried_until_it_can(world: World) -> None:
    behaviour = Path(world.fleet.current.config.model) / "fake.json"
    behaviour.write_text(json.dumps({"fails": True}))  # what another process took of the memory, say
    world.fleet.current.child.kill()
    assert eventually(lambda: world.fleet.num_restarts >= 2)
    assert not world.fleet.current.ready
    behaviour.write_text("{}")
    assert eventually(lambda: world.fleet.current.ready)
    assert world.served == "first"


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
