"""One call of the command: prepare what it needs, run the parts that were asked for, keep what came out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from . import chats, ours_alone, rounds, tune
from .engines import Engines, Worker, WorkerDied, load_settings
from .install import Places, install_all, pins
from .models import Models, facts, make_gguf, make_openvino, make_ours
from .shell import StepFailed
from .table import LLAMA, OPENVINO, OURS, PEERS, Row, as_json, as_text, build
from .worker_settings import OPENVINO_DEFAULTS


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    parts: tuple[str, ...]
    num_rounds: int
    num_http_rounds: int
    threads: int
    settings: Path
    json: Path | None
    #: why no peer takes part, where that was asked for
    without_peers: str = ""


class Session:
    """The state of one call."""

    def __init__(self, wanted: Wanted, places: Places, models: Models) -> None:
        self._wanted = wanted
        self._places = places
        self._models = models
        self._settings = load_settings(wanted.settings)
        self.unavailable: dict[str, str] = {}
        self.result: dict[str, Any] = {"parts": list(wanted.parts), "failed": {}}

    def prepare(self) -> None:
        """Peers and models, as far as the parts need them. A peer that cannot be had is named with the reason."""
        make_ours(self._models)
        needed = {"compute": PEERS, "tune": PEERS, "install": PEERS, "http": (LLAMA,)}
        peers = dict.fromkeys(peer for part in self._wanted.parts for peer in needed.get(part, ()))
        if self._wanted.without_peers:
            self.unavailable = dict.fromkeys(PEERS, self._wanted.without_peers)
        elif peers:
            self.unavailable = install_all(self._places)
            for peer in peers:
                self._prepare_model(peer)
        for peer, reason in self.unavailable.items():
            print(f"{peer} is not available: {reason}", flush=True)
        self.result |= {
            "facts": facts(self._models),
            "settings": self._settings,
            "unavailable": self.unavailable,
            "versions": versions(),
            "threads": self._wanted.threads,
        }

    def run(self) -> None:
        """Every part that was asked for; one that fails is reported and the others go on."""
        parts: dict[str, Callable[[], Any]] = {
            "tune": self._tune,
            "compute": self._compute,
            "http": self._http,
            "itl": lambda: ours_alone.itl(self._places, self._models, self._wanted.threads, self.result["facts"]["id_limit"]),
            "load": lambda: ours_alone.first_token(self._models, self._wanted.threads, self._wanted.num_rounds),
            "memory": lambda: ours_alone.memory(self._places, self._models, self._wanted.threads, self.result["facts"]),
            "embedded": lambda: chats.embedded(self._places, self._wanted.threads, self._wanted.num_rounds),
        }
        for name, part in parts.items():
            if name not in self._wanted.parts:
                continue
            print(f"{name}", flush=True)
            started_s = time.monotonic()
            try:
                self.result[name] = part()
            except (StepFailed, WorkerDied) as error:
                self.result["failed"][name] = str(error)
                print(f"  failed: {error}", flush=True)
            print(f"  took {time.monotonic() - started_s:.0f} s", flush=True)
            self._save()

    def report(self) -> str:
        """The table."""
        return as_text(self._rows(), self.unavailable)

    def _rows(self) -> list[Row]:
        return build(self.result)

    def _save(self) -> None:
        if self._wanted.json is not None:
            self._wanted.json.parent.mkdir(parents=True, exist_ok=True)
            record = {**self.result, "table": as_json(self._rows())}
            self._wanted.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _prepare_model(self, peer: str) -> None:
        if peer in self.unavailable:
            return
        try:
            if peer == LLAMA:
                make_gguf(self._models, self._places)
            else:
                self._prepare_openvino(self._settings[OPENVINO])
        except StepFailed as error:
            self.unavailable[peer] = str(error)

    def _prepare_openvino(self, settings: dict[str, Any]) -> None:
        make_openvino(self._models, self._places, {**OPENVINO_DEFAULTS, **settings}["weights"])

    def _compute(self) -> dict[str, Any]:
        engines = Engines(self._places, self._models, self._wanted.threads)
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for name in (OURS, *(peer for peer in PEERS if peer not in self.unavailable)):
                try:
                    workers[name] = engines.start(name, self._settings[name])
                except WorkerDied as error:
                    if name == OURS:
                        raise
                    print(f"  {error}", flush=True)
                    self.unavailable[name] = str(error)
                    continue
                stack.callback(workers[name].close)
            about = {name: worker.about for name, worker in workers.items()}
            played = rounds.play(workers, self._wanted.num_rounds, self.result["facts"]["id_limit"])
        self.unavailable |= played["died"]
        return {"about": about, **played}

    def _http(self) -> dict[str, Any]:
        if LLAMA in self.unavailable:
            print(f"  without llama-server: {self.unavailable[LLAMA]}", flush=True)
        played = chats.compare(
            self._places,
            self._models,
            self._wanted.threads,
            self._settings,
            self._wanted.num_http_rounds,
            with_llama=LLAMA not in self.unavailable,
        )
        return {"rounds": played}

    def _tune(self) -> dict[str, Any]:
        engines = Engines(self._places, self._models, self._wanted.threads)
        tuned: dict[str, dict[str, Any]] = {}
        for name in PEERS:
            if name in self.unavailable:
                continue
            prepare = self._prepare_openvino if name == OPENVINO else _nothing
            tuned[name] = tune.tune(name, engines, self.result["facts"]["id_limit"], self._wanted.num_rounds, prepare)
            tune.write(self._wanted.settings, tuned, pins())
        print(f"  the winners are in {self._wanted.settings}", flush=True)
        self._settings = self.result["settings"] = load_settings(self._wanted.settings)
        return tuned


def _nothing(settings: dict[str, Any]) -> None:
    """Nothing has to be made for a setting."""


def versions() -> dict[str, str]:
    """Of ours, and of the peers as they are pinned."""
    found = {name: metadata.version(name) for name in ("paddle-ds", "paddlepaddle")}
    return {**found, **{f"peers: {name}": version for name, version in pins().items()}}
