"""``POST /v1/feedback``: what is kept, what is refused, and a disk that is full."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from paddle_ds_serving.feedback import FILE_NAME, FeedbackFile, FeedbackNotStored

GOOD = {"request_id": "req_1", "rating": "up"}


@pytest.fixture
def keeper(make_server: Callable[..., Any], tmp_path: Path):
    return make_server(environ={"PADDLE_DS_FEEDBACK_DIR": str(tmp_path / "feedback")})


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / FILE_NAME).read_text(encoding="utf-8").splitlines()]


def test_a_rating_becomes_a_line(keeper, tmp_path: Path):
    answer = keeper.chat()
    asked = {"request_id": answer.headers["x-request-id"], "response_id": answer.json["id"]}
    response = keeper.post("/v1/feedback", {**asked, "rating": 2, "comment": "falsch\n推理", "label": "math"})
    assert response.status_code == 201
    assert response.json == {"id": "fb-" + "0" * 24, "created": 1_700_000_000, "object": "feedback"}
    wanted = {**asked, "rating": 2, "comment": "falsch\n推理", "label": "math", "model": "tiny-r1"}
    assert lines(tmp_path / "feedback") == [{"id": response.json["id"], "created": 1_700_000_000, **wanted}]
    assert ((tmp_path / "feedback" / FILE_NAME).stat().st_mode & 0o777) == 0o600


def test_what_was_not_said_is_left_out(keeper, tmp_path: Path):
    keeper.post("/v1/feedback", {"response_id": "cmpl-1", "rating": "down", "comment": None})
    (line,) = lines(tmp_path / "feedback")
    assert set(line) == {"id", "created", "rating", "response_id", "model"}


def test_an_answer_can_be_rated_while_the_engine_is_away(keeper, tmp_path: Path):
    keeper.engine.connected, keeper.engine.info = False, None
    assert keeper.post("/v1/feedback", GOOD).status_code == 201
    assert "model" not in lines(tmp_path / "feedback")[0]


@pytest.mark.parametrize(
    ("rating", "verdict"),
    [("up", "up"), ("down", "down"), (1, "down"), (2, "down"), (3, "neutral"), (4, "up"), (5, "up")],
)
def test_ratings_are_counted(keeper, rating, verdict):
    assert keeper.post("/v1/feedback", {**GOOD, "rating": rating}).status_code == 201
    assert f'paddle_ds:feedback_total{{verdict="{verdict}"}} 1.0' in keeper.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"rating": "up"}, "invalid_request", "request_id"),
        ({"request_id": "a"}, "invalid_request", "rating"),
        ({**GOOD, "rating": "good"}, "invalid_request", "rating"),
        ({**GOOD, "rating": 0}, "invalid_request", "rating"),
        ({**GOOD, "rating": 6}, "invalid_request", "rating"),
        ({**GOOD, "rating": True}, "invalid_request", "rating"),
        ({**GOOD, "rating": None}, "invalid_request", "rating"),
        ({**GOOD, "request_id": ""}, "invalid_request", "request_id"),
        ({**GOOD, "request_id": "a b"}, "invalid_request", "request_id"),
        ({**GOOD, "response_id": "x" * 129}, "invalid_request", "response_id"),
        ({**GOOD, "label": "two words"}, "invalid_request", "label"),
        ({**GOOD, "comment": "x" * 8193}, "invalid_request", "comment"),
        ({**GOOD, "coment": "x"}, "unsupported_parameter", "coment"),
    ],
)
def test_a_wrong_body_is_refused_and_nothing_is_kept(keeper, tmp_path: Path, body, code, param):
    response = keeper.post("/v1/feedback", body)
    assert (response.status_code, response.json["error"]["code"]) == (400, code)
    assert response.json["error"]["param"] == param
    assert not (tmp_path / "feedback").exists()


def test_only_json_is_read(keeper):
    assert keeper.client.post("/v1/feedback", data=b'{"rating": "up"}').status_code == 415


def test_without_a_directory_it_is_not_there(server):
    response = server.post("/v1/feedback", GOOD)
    assert (response.status_code, response.json["error"]["code"]) == (404, "feedback_not_enabled")
    assert "PADDLE_DS_FEEDBACK_DIR" in response.json["error"]["message"]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_of_its_own_and_the_server_lives(keeper, tmp_path: Path):
    directory = tmp_path / "feedback"
    directory.mkdir()
    (directory / FILE_NAME).symlink_to("/dev/full")
    response = keeper.post("/v1/feedback", GOOD)
    assert (response.status_code, response.json["error"]["code"]) == (507, "feedback_not_stored")
    assert "No space left on device" in response.json["error"]["message"]
    assert str(directory) not in response.json["error"]["message"]
    assert keeper.chat().status_code == 200
    (directory / FILE_NAME).unlink()  # there is room again
    assert keeper.post("/v1/feedback", GOOD).status_code == 201
    assert len(lines(directory)) == 1


def test_a_directory_that_cannot_be_made_is_the_same_error(make_server, tmp_path: Path):
    (tmp_path / "file").write_text("")
    server = make_server(environ={"PADDLE_DS_FEEDBACK_DIR": str(tmp_path / "file" / "feedback")})
    assert server.post("/v1/feedback", GOOD).json["error"]["code"] == "feedback_not_stored"


def test_a_line_that_could_only_be_written_in_part_is_cut_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = FeedbackFile(tmp_path)
    file.add(b'{"n": 1}')
    write, calls = os.write, []

    def fills_up(descriptor: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:4])

    monkeypatch.setattr(os, "write", fills_up)
    with pytest.raises(FeedbackNotStored):
        file.add(b'{"n": 2}')
    monkeypatch.undo()
    assert calls == [9, 5]
    assert (tmp_path / FILE_NAME).read_bytes() == b'{"n": 1}\n'


def test_full_files_are_put_aside_and_no_line_is_lost(tmp_path: Path):
    file = FeedbackFile(tmp_path, max_file_bytes=64)
    for number in range(40):
        file.add(json.dumps({"n": number}).encode())
    files = sorted(tmp_path.glob("feedback*.jsonl"))
    assert all(re.fullmatch(r"feedback(-\d{8}T\d{6}Z-\d{6})?\.jsonl", path.name) for path in files)
    assert len(files) > 5
    assert all(path.stat().st_size <= 64 for path in files)
    found = [json.loads(line)["n"] for path in files for line in path.read_text().splitlines()]
    assert sorted(found) == list(range(40))


def test_a_line_longer_than_a_file_may_be_gets_one_of_its_own(tmp_path: Path):
    file = FeedbackFile(tmp_path, max_file_bytes=8)
    file.add(b"x" * 100)
    assert (tmp_path / FILE_NAME).stat().st_size == 101


def _add_many(directory: Path, name: str) -> None:
    file = FeedbackFile(directory, max_file_bytes=512)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: file.add(json.dumps({"who": name, "n": number}).encode()), range(25)))


def test_processes_and_threads_write_whole_lines(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(tmp_path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    found = [json.loads(line) for path in tmp_path.glob("feedback*.jsonl") for line in path.read_text().splitlines()]
    assert sorted((line["who"], line["n"]) for line in found) == [(who, n) for who in "abc" for n in range(25)]
