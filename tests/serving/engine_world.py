"""A supervisor's fleet without a supervisor: engines that are real processes and answer from a script."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from gunicorn_process import ROOT, eventually
from tiny_tokenizer import write_tokenizer

from paddle_ds.checkpoints.manifest import weight_version
from paddle_ds.config.engine import EngineConfig
from paddle_ds_serving.supervision import fleet as fleet_module
from paddle_ds_serving.supervision.canary import CanaryConfig
from paddle_ds_serving.supervision.fleet import Fleet
from paddle_ds_serving.supervision.health import HealthWatch
from paddle_ds_serving.supervision.updater import Updater

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
        self.stopping = False
        self.updater = Updater(self.fleet, canary, 60.0, lambda: self.stopping)
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


AnyWorld = TypeVar("AnyWorld", bound=World)


@contextlib.contextmanager
def running_world(models: Path, kind: type[AnyWorld] = World) -> Iterator[AnyWorld]:  # type: ignore[assignment]
    """A world whose drained engines need no long rest."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="pds-") as run_dir:
        patch.setattr(fleet_module, "SETTLE_S", 0.1)
        made = kind(Path(run_dir), models)  # not in tmp_path: a Unix socket's path has 107 bytes
        try:
            yield made
        finally:
            made.close()
