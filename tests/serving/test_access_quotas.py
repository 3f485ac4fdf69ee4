"""Token buckets by a clock of their own, and quotas as clients feel them."""

from __future__ import annotations

import logging
import sqlite3
import threading

import pytest
from access_keys import bearer, entry, write_keys
from fake_engine import ANSWERS, Fail, say

from paddle_ds.errors import EngineDied, ServerOverloaded
from paddle_ds_serving.access.errors import RateLimitExceeded
from paddle_ds_serving.access.keys import Principal
from paddle_ds_serving.access.limits import DEEPEST_S, FallbackStore, SqliteStore, StoreDown
from paddle_ds_serving.access.quota import Quota


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time stands still unless a test moves it, in servers as well."""
    clock = Clock()
    monkeypatch.setitem(SqliteStore.__init__.__kwdefaults__, "clock_s", clock)
    return clock


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path, clock):
    store = SqliteStore(tmp_path / "limits.sqlite" if request.param == "file" else None, clock_s=clock)
    yield store
    store.close()


def test_a_bucket_is_full_at_first_and_then_fills_evenly(store, clock):
    assert [store.take("a", 20.0) for _ in range(3)] == [0, 0, 0]
    assert store.take("a", 20.0) == pytest.approx(20.0)
    clock.now_s += 19.9
    assert store.take("a", 20.0) == pytest.approx(0.1)
    clock.now_s += 0.1
    assert store.take("a", 20.0) == 0
    clock.now_s += 1e6
    assert [store.take("a", 20.0) for _ in range(4)] == [0, 0, 0, pytest.approx(20.0)]


def test_what_is_refused_costs_nothing(store):
    store.take("a", 50.0)
    assert [store.take("a", 20.0) for _ in range(5)] == [pytest.approx(10.0)] * 5
    assert store.take("a", 10.0) == 0


def test_buckets_are_apart(store):
    store.take("a", 60.0)
    assert store.take("b", 60.0) == 0


def test_what_is_given_back_can_be_taken_again_and_no_more(store):
    store.take("a", 60.0)
    store.charge("a", -500.0)
    assert store.take("a", 60.0) == 0
    assert store.take("a", 1.0) > 0


def test_a_debt_has_to_be_made_up_but_is_bounded(store):
    store.charge("a", 70.0)
    assert store.take("a", 1.0) == pytest.approx(11.0)
    store.charge("a", 1e9)
    assert store.take("a", 1.0) == pytest.approx(DEEPEST_S + 1 - 60)


def test_a_clock_that_jumps_back_blocks_nobody_for_long(store, clock):
    store.take("a", 1.0)
    clock.now_s = 1.0
    assert store.take("a", 60.0) == 0
    assert store.take("a", 1.0) == pytest.approx(1.0)
    clock.now_s += 1.0
    assert store.take("a", 1.0) == 0


def test_full_buckets_are_forgotten(tmp_path, clock):
    store = SqliteStore(tmp_path / "limits.sqlite", clock_s=clock)
    for number in range(50):
        store.take(f"key-{number}", 1.0)
    clock.now_s += 2
    store.take("another", 1.0)
    store.close()
    with sqlite3.connect(tmp_path / "limits.sqlite") as connection:
        assert connection.execute("SELECT name FROM bucket").fetchall() == [("another",)]
    connection.close()


def test_two_workers_share_a_file(tmp_path, clock):
    one, two = (SqliteStore(tmp_path / "limits.sqlite", clock_s=clock) for _ in range(2))
    assert [store.take("a", 20.0) for store in (one, two, one, two)] == [0, 0, 0, pytest.approx(20.0)]
    one.close()
    two.close()


def test_threads_and_stores_never_let_more_through(tmp_path, clock):
    stores = [SqliteStore(tmp_path / "limits.sqlite", clock_s=clock) for _ in range(3)]
    passed = []

    def work(store):
        passed.extend(store.take("a", 1.0) == 0 for _ in range(20))

    threads = [threading.Thread(target=work, args=(store,)) for store in stores for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) == 60
    for store in stores:
        store.close()


def test_a_damaged_file_is_told_and_replaced_by_memory(tmp_path, clock, caplog):
    path = tmp_path / "limits.sqlite"
    path.write_bytes(b"no database, but long enough to look at" * 100)
    with pytest.raises(StoreDown):
        SqliteStore(path).take("a", 1.0)
    store = FallbackStore("file", SqliteStore(path), SqliteStore(None, clock_s=clock), clock_s=clock)
    with caplog.at_level(logging.INFO):
        assert [store.take("a", 30.0) for _ in range(3)] == [0, 0, pytest.approx(30.0)]
    assert [record.getMessage() for record in caplog.records] == ["limits.store_down"]
    path.unlink()
    clock.now_s += 1
    with caplog.at_level(logging.INFO):
        assert store.take("a", 30.0) == 0
    assert caplog.records[-1].getMessage() == "limits.store_back"


def test_the_message_and_the_time_of_a_refusal(clock):
    quota = Quota(SqliteStore(None, clock_s=clock))
    principal = Principal("a", frozenset(), requests_per_minute=2)
    quota.count_request(principal)
    quota.count_request(principal)
    with pytest.raises(RateLimitExceeded, match="'a' has a quota of 2 requests a minute") as caught:
        quota.count_request(principal)
    assert caught.value.retry_after_s == pytest.approx(30.0)


def test_tokens_are_reserved_and_settled(clock):
    quota = Quota(SqliteStore(None, clock_s=clock))
    principal = Principal("a", frozenset(), tokens_per_minute=100)
    settle = quota.reserve(principal, 80)
    with pytest.raises(RateLimitExceeded):
        quota.reserve(principal, 21)
    settle(10)
    quota.reserve(principal, 90)
    with pytest.raises(RateLimitExceeded) as caught:
        quota.reserve(principal, 5)
    assert caught.value.retry_after_s == pytest.approx(3.0)


def test_an_order_over_the_quota_waits_for_a_full_bucket_and_leaves_a_debt(clock):
    quota = Quota(SqliteStore(None, clock_s=clock))
    principal = Principal("a", frozenset(), tokens_per_minute=100)
    quota.reserve(principal, 100_000)(150)
    with pytest.raises(RateLimitExceeded) as caught:
        quota.reserve(principal, 100_000)
    assert caught.value.retry_after_s == pytest.approx(90.0)


def keyed(make_server, tmp_path, script=None, **limits):
    environ = write_keys(tmp_path / "keys.yaml", entry("limited", "infer", "metrics", **limits), entry("free", "infer"))
    return make_server(*([script] if script else []), environ=environ)


def test_over_the_quota_of_requests(make_server, tmp_path, clock):
    server = keyed(make_server, tmp_path, rpm=2)
    assert [server.get("/v1/models", headers=bearer("limited")).status_code for _ in range(3)] == [200, 200, 429]
    response = server.get("/v1/models", headers=bearer("limited"))
    assert response.json["error"]["type"] == "rate_limit_error"
    assert response.json["error"]["code"] == "rate_limit_exceeded"
    assert (response.headers["retry-after-ms"], response.headers["retry-after"]) == ("30000", "30")
    clock.now_s += 28.5
    response = server.get("/v1/models", headers=bearer("limited"))
    assert (response.headers["retry-after-ms"], response.headers["retry-after"]) == ("1500", "2")
    assert server.get("/v1/models", headers=bearer("free")).status_code == 200
    assert server.get("/metrics", headers=bearer("limited")).status_code == 200


def chat(server, key="limited", **body):
    message = {"messages": [{"role": "user", "content": "Hello"}]}
    return server.post("/v1/chat/completions", {**message, **body}, headers=bearer(key))


def spare(server, quota):
    """Tokens left in the bucket, found out by what is refused: prompts of one token and ``max_tokens``."""
    body = {"prompt": [5], "stream": False}
    for wanted in range(quota - 1, 0, -1):
        answer = server.post("/v1/completions", {**body, "max_tokens": wanted}, headers=bearer("limited"))
        if answer.status_code == 200:
            return wanted + 1
    return 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_over_the_quota_of_tokens(make_server, tmp_path, stream):
    server = keyed(make_server, tmp_path, tpm=60)
    first = chat(server, max_tokens=20, stream=stream)
    assert first.status_code == 200
    used = sum(len(submit.prompt_ids) for submit in server.engine.actor.submitted) + 7
    left = spare(server, 60)
    assert left == 60 - used  # and nothing of the 20 that were reserved is lost
    response = chat(server, max_tokens=60 - 10, stream=stream)
    assert response.status_code == 429
    assert "60 tokens a minute" in response.json["error"]["message"]
    assert chat(server, "free", max_tokens=20, stream=stream).status_code == 200


def test_n_answers_and_several_prompts_are_reserved(make_server, tmp_path):
    server = keyed(make_server, tmp_path, tpm=60)
    body = {"prompt": [[5], [6]], "n": 2, "max_tokens": 14}
    assert server.post("/v1/completions", body, headers=bearer("limited")).status_code == 200
    server = keyed(make_server, tmp_path, tpm=57)
    answer = server.post("/v1/completions", body, headers=bearer("limited"))
    assert answer.status_code == 200  # over a minute's quota: a full bucket will do
    assert server.post("/v1/completions", body, headers=bearer("limited")).status_code == 429


def test_what_the_engine_refused_costs_nothing(make_server, tmp_path):
    server = keyed(make_server, tmp_path, tpm=60)
    server.engine.refusal = ServerOverloaded("full")
    assert [chat(server, max_tokens=40).status_code for _ in range(4)] == [503] * 4
    server.engine.refusal = None
    assert spare(server, 60) == 60


def test_what_failed_costs_what_it_used(make_server, tmp_path):
    server = keyed(make_server, tmp_path, say("Let", Fail(EngineDied("lost"))), tpm=60)
    assert server.post("/v1/completions", {"prompt": [5], "max_tokens": 40}, headers=bearer("limited")).status_code == 503
    server.engine.actor.script = ANSWERS
    assert spare(server, 60) == 60 - 2


def test_a_refused_order_never_reaches_the_engine_and_frees_its_thread(make_server, tmp_path):
    server = keyed(make_server, tmp_path, tpm=30)
    server.app.extensions["paddle_ds"].limit(1)
    assert chat(server, max_tokens=20).status_code == 200
    num_submitted = len(server.engine.actor.submitted)
    assert [chat(server, max_tokens=25).status_code for _ in range(3)] == [429] * 3
    assert len(server.engine.actor.submitted) == num_submitted
    assert chat(server, "free", max_tokens=20).status_code == 200


def test_tokens_are_counted_for_each_key(make_server, tmp_path):
    server = keyed(make_server, tmp_path)
    used = chat(server, max_tokens=20).json["usage"]["total_tokens"]
    text = server.get("/metrics", headers=bearer("limited")).text
    assert f'paddle_ds:key_tokens_total{{key="limited"}} {float(used)}' in text
