"""``GET /v1/models/{id}/quality``."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from tiny_tokenizer import write_tokenizer

PASSPORT = {"version": 1, "loss": {"wiki": {"reference": 2.5, "quantized": 2.5025, "increase": 0.001}}, "gate": {"passed": True}}


@pytest.fixture
def measured(make_server, tmp_path: Path):
    directory = write_tokenizer(tmp_path / "tiny-r1")
    (directory / "passport.json").write_text(json.dumps(PASSPORT, indent=2) + "\n", encoding="utf-8")
    return make_server(directory=directory)


def test_the_passport_of_the_served_model_is_shown(measured):
    response = measured.get("/v1/models/tiny-r1/quality")
    assert response.status_code == 200
    assert response.content_type == "application/json"
    assert response.json == PASSPORT


def test_a_model_whose_name_has_a_slash_has_its_passport(measured):
    info = measured.engine.info
    measured.engine.info = msgspec.structs.replace(info, model=msgspec.structs.replace(info.model, name="org/tiny"))
    assert measured.get("/v1/models/org/tiny/quality").json == PASSPORT
    assert measured.get("/v1/models/org/tiny").json["id"] == "org/tiny"


def test_another_model_is_not_found(measured):
    response = measured.get("/v1/models/other/quality")
    assert response.status_code == 404
    assert response.json["error"]["code"] == "model_not_found"


def test_a_model_without_a_passport_says_what_would_write_one(server):
    response = server.get("/v1/models/tiny-r1/quality")
    error = response.json["error"]
    assert response.status_code == 404
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"], error["param"]) == ("passport_not_found", "not_found_error", None)
    assert "paddle-ds eval" in error["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"loss": NaN}', b"\xff\xfe"], ids=["empty", "cut", "list", "nan", "utf-16"]
)
def test_a_damaged_passport_is_an_error_of_the_server(make_server, tmp_path: Path, content: bytes):
    directory = write_tokenizer(tmp_path / "tiny-r1")
    (directory / "passport.json").write_bytes(content)
    response = make_server(directory=directory).get("/v1/models/tiny-r1/quality")
    assert (response.status_code, response.json["error"]["code"]) == (500, "checkpoint_corrupt_file")
    assert str(directory) not in response.json["error"]["message"]


def test_while_the_model_loads_there_is_no_answer_yet(measured):
    measured.engine.info = msgspec.structs.replace(measured.engine.info, state="loading", model=None)
    response = measured.get("/v1/models/tiny-r1/quality")
    assert (response.status_code, response.json["error"]["code"]) == (503, "engine_unavailable")


def test_the_passport_is_only_read(measured):
    response = measured.post("/v1/models/tiny-r1/quality", {})
    assert (response.status_code, response.json["error"]["code"]) == (405, "method_not_allowed")
