"""A worker follows the pointer, and each request stays with the engine whose model it has looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_engine import ANSWERS, FakeEngine, ready_info, say
from gunicorn_process import eventually
from tiny_tokenizer import write_tokenizer

from paddle_ds import settings
from paddle_ds.errors import EngineUnavailable
from paddle_ds_serving.app import create_app
from paddle_ds_serving.supervision import pointer, switch
from paddle_ds_serving.supervision.pointer import Pointer
from paddle_ds_serving.supervision.switch import EngineSwitch


class Engines:
    """Fake clients by the name of their socket."""

    def __init__(self, directory: Path, tokenizer_dir: Path) -> None:
        self.directory = directory
        self.made: dict[str, FakeEngine] = {}
        self.closed: list[str] = []
        self._tokenizer_dir = tokenizer_dir

    def connect(self, path: Path) -> Any:
        number = path.stem.removeprefix("engine-")
        engine = FakeEngine(self._tokenizer_dir, say(f"Hello{' world' * int(number)}"), burst=True)
        info = ready_info(self._tokenizer_dir, boot_id=path.stem)
        model = msgspec.structs.replace(info.model, weight_version=f"wv_{number}")
        engine.info = msgspec.structs.replace(info, model=model)
        engine.close = lambda: self.closed.append(path.name)  # type: ignore[method-assign]
        self.made[path.name] = engine
        return engine

    def point(self, generation: int, **more: Any) -> None:
        pointer.write(self.directory, Pointer(generation, f"engine-{generation}.sock", **more))


@pytest.fixture
def engines(tmp_path: Path, tokenizer_dir: Path) -> Engines:
    return Engines(tmp_path, tokenizer_dir)


@pytest.fixture
def follower(engines: Engines) -> Iterator[EngineSwitch]:
    made = EngineSwitch(engines.directory, engines.connect)
    yield made
    made.close()


def test_without_a_pointer_there_is_no_engine(follower: EngineSwitch) -> None:
    assert (follower.connected, follower.info, follower.stats) == (False, None, None)
    with pytest.raises(EngineUnavailable):
        follower.pin()


def test_it_follows_the_pointer_at_once(engines: Engines, follower: EngineSwitch) -> None:
    for generation in (1, 2, 3):
        engines.point(generation)
        assert follower.pin() is engines.made[f"engine-{generation}.sock"]
        assert follower.info is engines.made[f"engine-{generation}.sock"].info


def test_a_refusal_is_told_and_ends(engines: Engines, follower: EngineSwitch) -> None:
    engines.point(1, refusal="drained by its operator")
    with pytest.raises(EngineUnavailable, match="drained by its operator"):
        follower.pin()
    engines.point(1)
    follower.pin()


def test_it_connects_ahead_and_says_who_joined(engines: Engines, follower: EngineSwitch) -> None:
    joined: list[Any] = []
    follower.on_joined = joined.append
    engines.point(1, next_socket="engine-2.sock")
    assert eventually(lambda: len(joined) == 2)
    assert set(engines.made) == {"engine-1.sock", "engine-2.sock"}
    assert follower.pin() is engines.made["engine-1.sock"]


def test_the_old_connection_stays_until_its_engine_has_left(engines: Engines, follower: EngineSwitch) -> None:
    engines.point(1)
    old = follower.pin()
    engines.point(2)
    follower.pin()
    assert not eventually(lambda: engines.closed != [], limit_s=0.3)
    old.connected = False  # type: ignore[misc]
    assert eventually(lambda: engines.closed == ["engine-1.sock"])


def test_a_request_waits_for_a_connection_to_an_engine_that_was_ready(
    engines: Engines, follower: EngineSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch, "CONNECT_S", 60.0)
    engines.point(1)
    follower.pin()
    late = engines.connect(Path("engine-2.sock"))
    info, late.info = late.info, None
    follower._clients["engine-2.sock"] = late
    follower._wait_until_s["engine-2.sock"] = float("inf")
    engines.point(2)
    answers = iter([None, None])

    class Late(FakeEngine):
        @property  # type: ignore[override]
        def info(self) -> Any:
            return next(answers, info)

        @info.setter
        def info(self, value: Any) -> None:
            pass

    late.__class__ = Late
    assert follower.pin().info is info


def test_a_request_stays_with_the_engine_it_has_looked_at(engines: Engines, follower: EngineSwitch) -> None:
    engines.point(1)
    app = create_app(follower, settings.load({}))
    service = app.extensions["paddle_ds"]
    load = service.served

    def switch_after_looking(asked_model: str | None = None) -> Any:
        served = load(asked_model)
        engines.point(2)  # between the look at the model and the submission of the prompt
        return served

    service.served = switch_after_looking
    client = app.test_client()
    body = {"messages": [{"role": "user", "content": "Hello"}], "reasoning_format": "none"}
    for number in (1, 2):
        response = client.post("/v1/chat/completions", json=body, buffered=True)
        assert response.json["weight_version"] == response.headers["x-weight-version"] == f"wv_{number}"
        assert response.json["choices"][0]["message"]["content"] == f"Hello{' world' * number}"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/generate", {"prompt": "Hello"}),
    ],
)
def test_answers_and_streams_tell_their_version(engines: Engines, follower: EngineSwitch, path: str, body: Any) -> None:
    engines.point(1)
    client = create_app(follower, settings.load({})).test_client()
    assert client.post(path, json=body, buffered=True).json["weight_version"] == "wv_1"
    stream = client.post(path, json={**body, "stream": True}, buffered=True)
    assert stream.headers["x-weight-version"] == "wv_1"
    chunks = [msgspec.json.decode(line[6:]) for line in stream.data.splitlines() if line.startswith(b"data: {")]
    told = [chunk.get("weight_version") for chunk in chunks]
    assert set(told[-1:] if path == "/generate" else told) == {"wv_1"}


def test_health_and_models_tell_the_version(engines: Engines, follower: EngineSwitch) -> None:
    engines.point(1)
    client = create_app(follower, settings.load({})).test_client()
    assert client.get("/health").json["model"]["weight_version"] == "wv_1"
    (card,) = client.get("/v1/models").json["data"]
    assert card["weight_version"] == "wv_1"
    assert client.get("/v1/models").headers["x-weight-version"] == "wv_1"


def test_the_tokenizer_is_loaded_ahead(engines: Engines, follower: EngineSwitch, tmp_path: Path) -> None:
    engines.point(1)
    service = create_app(follower, settings.load({})).extensions["paddle_ds"]
    other = FakeEngine(write_tokenizer(tmp_path / "other"), ANSWERS)
    service.prepare(other)
    assert "boot-1" in service._served
