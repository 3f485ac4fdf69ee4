"""Cached answers: what is kept, for whom, and that a replay cannot be told from the first time."""

from __future__ import annotations

import dataclasses
import logging

import msgspec
import pytest
from access_keys import bearer, entry, write_keys
from fake_engine import Fail, say
from redis_server import PROGRAM, RedisServer

from paddle_ds.errors import EngineDied
from paddle_ds_serving.access import answer_store
from paddle_ds_serving.access.answer_store import LocalAnswers

GREEDY = {"temperature": 0}


@pytest.fixture
def cached(make_server):
    return lambda *script, **kw: make_server(*script, environ={"PADDLE_DS_RESPONSE_CACHE_S": "600", **kw})


def same(response):
    """A body without what is of one response only."""
    body = dict(response.json)
    assert body.pop("id")
    return body


def num_asked(server):
    return len(server.engine.actor.submitted)


@pytest.mark.parametrize(
    "fields", [GREEDY, {"seed": 7}, {**GREEDY, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}]
)
def test_a_deterministic_answer_is_given_again(cached, fields):
    server = cached()
    first, second = server.chat(**fields), server.chat(**fields)
    assert [first.headers["x-cache"], second.headers["x-cache"]] == ["miss", "hit"]
    assert same(first) == same(second)
    assert num_asked(server) == 1


def test_an_answer_cut_by_its_length_is_given_again(cached):
    server = cached()
    first, second = (server.chat(**GREEDY, max_tokens=5) for _ in range(2))
    assert second.headers["x-cache"] == "hit"
    assert second.json["choices"][0]["finish_reason"] == "length"
    assert same(first) == same(second)


def test_whole_and_streamed_share_an_answer(cached):
    server = cached()
    whole = server.chat(**GREEDY)
    stream = server.chat(**GREEDY, stream=True, stream_options={"include_usage": True})
    assert stream.headers["x-cache"] == "hit"
    events = [msgspec.json.decode(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    assert text == whole.json["choices"][0]["message"]["content"]
    assert events[-1]["usage"] == whole.json["usage"]
    assert stream.text.endswith("data: [DONE]\n\n")
    assert server.complete(**GREEDY, stream=True).headers["x-cache"] == "miss"
    assert server.complete(**GREEDY).headers["x-cache"] == "hit"


@pytest.mark.parametrize("fields", [{}, {"temperature": 1}, {**GREEDY, "n": 2}], ids=["default", "sampled", "several"])
def test_what_is_not_kept_says_nothing(cached, fields):
    server = cached()
    for _ in range(2):
        assert "x-cache" not in server.chat(**fields).headers
    assert num_asked(server) == 2 * fields.get("n", 1)


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0, "max_tokens": 9},
        {"seed": 7},
        {"seed": 8},
        {"temperature": 0, "seed": 7},
        {"temperature": 0, "top_k": 3},
    ],
    ids=str,
)
def test_other_parameters_are_another_request(cached, other):
    server = cached()
    server.chat(temperature=0)
    assert server.chat(**other).headers["x-cache"] == "miss"


def test_another_prompt_is_another_request(cached):
    server = cached()
    server.post("/v1/completions", {"prompt": [5, 6], **GREEDY})
    assert server.post("/v1/completions", {"prompt": [5, 7], **GREEDY}).headers["x-cache"] == "miss"
    assert server.post("/v1/completions", {"prompt": [5, 6], **GREEDY}).headers["x-cache"] == "hit"


@pytest.mark.parametrize("change", ["weights", "engine", "cache"])
def test_other_weights_do_not_answer_for_these(cached, change):
    server = cached()
    info = server.engine.info
    if change != "engine":
        info = server.engine.info = msgspec.structs.replace(
            info, model=msgspec.structs.replace(info.model, weight_version="wv_1")
        )
    server.chat(**GREEDY)
    model = {"weights": {"weight_version": "wv_2"}, "engine": {}, "cache": {"kv_dtype": "float32"}}[change]
    server.engine.info = msgspec.structs.replace(info, boot_id="boot-2", model=msgspec.structs.replace(info.model, **model))
    assert server.chat(**GREEDY).headers["x-cache"] == "miss"


def test_the_same_weights_in_an_engine_that_was_started_again_do(cached):
    server = cached()
    info = server.engine.info
    server.engine.info = msgspec.structs.replace(info, model=msgspec.structs.replace(info.model, weight_version="wv_1"))
    server.chat(**GREEDY)
    server.engine.info = msgspec.structs.replace(server.engine.info, boot_id="boot-2")
    assert server.chat(**GREEDY).headers["x-cache"] == "hit"


def test_what_failed_or_was_cut_here_is_not_kept(cached):
    server = cached(say("Let", Fail(EngineDied("lost"))))
    assert [server.chat(**GREEDY).status_code for _ in range(2)] == [503, 503]
    server = cached()
    for _ in range(2):
        answer = server.complete(**GREEDY, stop="think")
        assert (answer.headers["x-cache"], answer.json["choices"][0]["text"]) == ("miss", "Let me ")
        server.engine.actor.aborted.clear()  # ids are the same each time here


def test_keys_do_not_see_each_others_answers(cached, tmp_path):
    server = cached(**write_keys(tmp_path / "keys.yaml", entry("a", "infer"), entry("b", "infer")))

    def ask(key_id):
        return server.post("/v1/completions", {"prompt": "Hello", **GREEDY}, headers=bearer(key_id)).headers["x-cache"]

    assert [ask("a"), ask("b"), ask("a"), ask("b")] == ["miss", "miss", "hit", "hit"]


def test_a_hit_counts_against_the_quota(cached, tmp_path):
    server = cached(**write_keys(tmp_path / "keys.yaml", entry("a", "infer", tpm=30)))
    statuses = [
        server.post("/v1/completions", {"prompt": "Hello", "max_tokens": 12, **GREEDY}, headers=bearer("a")).status_code
        for _ in range(8)
    ]
    assert statuses[0] == 200
    assert 429 in statuses
    assert num_asked(server) == 1


def test_metrics(cached):
    server = cached()
    for _ in range(3):
        server.chat(**GREEDY)
    text = server.get("/metrics").text
    assert "paddle_ds:response_cache_queries_total 3.0" in text
    assert "paddle_ds:response_cache_hits_total 2.0" in text


def test_it_is_off_unless_asked_for(server):
    assert [("x-cache" in server.chat(**GREEDY).headers) for _ in range(2)] == [False, False]
    assert num_asked(server) == 2


@dataclasses.dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self):
        return self.now_s


def test_the_memory_is_bounded_in_bytes_and_in_time():
    clock = Clock()
    answers = LocalAnswers(10.0, max_bytes=3 * 1300, clock_s=clock)
    for key in "abc":
        answers.put(key, b"x" * 1000)
    assert answers.get("a")
    answers.put("d", b"x" * 1000)
    assert [answers.get(key) is not None for key in "abcd"] == [True, False, True, True]
    answers.put("huge", b"x" * 10_000)
    assert [answers.get(key) for key in ("a", "c", "d", "huge")] == [None] * 4
    answers.put("e", b"y")
    clock.now_s = 10.0
    assert answers.get("e") is None
    for _ in range(1000):
        answers.put("same", b"z" * 1000)
    assert answers.get("same") == b"z" * 1000


@pytest.fixture
def redis_server(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_servers_share_answers_through_redis_and_do_without(cached, redis_server, monkeypatch, caplog):
    monkeypatch.setattr(answer_store, "RETRY_S", 0.0)
    one, two = (cached(PADDLE_DS_REDIS_URL=redis_server.url) for _ in range(2))
    for server in (one, two):
        model = msgspec.structs.replace(server.engine.info.model, weight_version="wv_1")
        server.engine.info = msgspec.structs.replace(server.engine.info, model=model)
    first, second = one.chat(**GREEDY), two.chat(**GREEDY)
    assert [first.headers["x-cache"], second.headers["x-cache"]] == ["miss", "hit"]
    assert same(first) == same(second)
    with redis_server.client() as client:
        (key,) = client.keys("paddle_ds:answer:*")
        assert 0 < client.pttl(key) <= 600_000
        client.set(key, b"damaged")
    with caplog.at_level(logging.WARNING):
        assert two.chat(**GREEDY).headers["x-cache"] == "miss"
    assert caplog.records[-1].getMessage() == "response_cache.damaged"
    assert one.chat(**GREEDY).headers["x-cache"] == "hit"
    redis_server.kill()
    assert [one.chat(**GREEDY).headers["x-cache"] for _ in range(2)] == ["miss", "miss"]
    redis_server.start()
    assert [one.chat(**GREEDY).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
