"""Quotas that servers share through a real Redis: killed, frozen, and back."""

from __future__ import annotations

import logging
import signal
import threading

import pytest
from access_keys import bearer, entry, write_keys
from redis_server import PROGRAM, RedisServer

from paddle_ds import settings
from paddle_ds.errors import ConfigError
from paddle_ds_serving.access import limits, redis_store
from paddle_ds_serving.access.limits import DEEPEST_S, StoreDown
from paddle_ds_serving.access.redis_store import RedisStore, connect

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def store(server):
    with connect(server.url) as client:
        yield RedisStore(client)


def test_a_bucket_is_full_at_first_and_tells_when_to_come_back(store, server):
    assert [store.take("a", 30.0) for _ in range(2)] == [0, 0]
    assert 29 < store.take("a", 30.0) <= 30
    store.charge("a", -30.0)
    assert store.take("a", 30.0) == 0
    store.charge("a", 1e9)
    assert 60 < store.take("a", 1.0) <= DEEPEST_S
    with server.client() as client:
        assert client.keys() == [b"paddle_ds:bucket:a"]
        assert 0 < client.pttl("paddle_ds:bucket:a") <= DEEPEST_S * 1000


def test_a_full_bucket_is_forgotten(store, server):
    store.take("a", 10.0)
    store.charge("a", -10.0)
    with server.client() as client:
        assert client.keys() == []


def test_a_clock_of_redis_that_jumped_back_blocks_nobody_for_long(store, server):
    with server.client() as client:
        client.set("paddle_ds:bucket:a", "99999999999.0")
    assert store.take("a", 1.0) == 0
    assert 0 < store.take("a", 60.0) <= 1  # counted as ever


def test_many_threads_of_two_servers_never_get_more_than_the_quota(server):
    with connect(server.url) as one, connect(server.url) as two:
        stores, passed = [RedisStore(one), RedisStore(two)], []

        def work(store):
            passed.extend(store.take("a", 2.0) == 0 for _ in range(10))

        threads = [threading.Thread(target=work, args=(store,)) for store in stores * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 30 <= sum(passed) <= 32  # the bucket fills a little meanwhile


@pytest.mark.parametrize("value", ["nonsense", ""])
def test_a_value_that_is_not_ours_is_told(store, server, value):
    with server.client() as client:
        client.lpush("paddle_ds:bucket:a", value)
    with pytest.raises(StoreDown):
        store.take("a", 1.0)


def models(server):
    return server.get("/v1/models", headers=bearer("limited")).status_code


def up(server):
    text = server.get("/metrics", headers=bearer("limited")).text
    return next(line for line in text.splitlines() if line.startswith("paddle_ds:redis_up")).split()[-1]


def test_servers_share_a_quota_do_without_redis_and_use_it_again(make_server, server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(limits, "RETRY_S", 0.0)
    environ = write_keys(tmp_path / "keys.yaml", entry("limited", "infer", "metrics", rpm=3))
    one, two = (make_server(environ={**environ, "PADDLE_DS_REDIS_URL": server.url}) for _ in range(2))
    assert [models(one), models(two), models(one), models(two), models(one)] == [200, 200, 200, 429, 429]
    assert (up(one), up(two)) == ("1.0", "1.0")

    server.kill()
    with caplog.at_level(logging.INFO, logger="paddle_ds_serving"):
        assert [models(one) for _ in range(5)] == [200, 200, 200, 429, 429]
    assert [record.getMessage() for record in caplog.records if "limits." in record.getMessage()] == ["limits.store_down"]
    assert models(two) == 200
    assert (up(one), up(two)) == ("0.0", "0.0")

    server.start()
    assert [models(one), models(two), models(one), models(two)] == [200, 200, 200, 429]
    assert (up(one), up(two)) == ("1.0", "1.0")


def test_a_redis_that_hangs_holds_up_one_request_and_not_the_others(make_server, server, tmp_path, monkeypatch):
    monkeypatch.setattr(redis_store, "TIMEOUT_S", 0.05)
    environ = write_keys(tmp_path / "keys.yaml", entry("limited", "infer", "metrics", rpm=100))
    one = make_server(environ={**environ, "PADDLE_DS_REDIS_URL": server.url})
    assert models(one) == 200
    server.signal(signal.SIGSTOP)
    try:
        assert [models(one) for _ in range(20)] == [200] * 20
        assert up(one) == "0.0"
    finally:
        server.signal(signal.SIGCONT)


def test_a_server_starts_without_its_redis(make_server, server, tmp_path):
    server.kill()
    environ = write_keys(tmp_path / "keys.yaml", entry("limited", "infer", "metrics", rpm=2))
    one = make_server(environ={**environ, "PADDLE_DS_REDIS_URL": server.url})
    assert up(one) == "0.0"  # before any limited request
    assert [models(one) for _ in range(3)] == [200, 200, 429]


def test_a_scrape_finds_out_that_redis_went_and_came_back(make_server, server, monkeypatch):
    monkeypatch.setattr(limits, "RETRY_S", 0.0)
    one = make_server(environ={"PADDLE_DS_REDIS_URL": server.url})
    found = [up(one)]
    server.kill()
    found.append(up(one))
    server.start()
    assert [*found, up(one)] == ["1.0", "0.0", "1.0"]
    with server.client() as client:
        assert client.keys() == []  # the trial leaves nothing


def test_a_redis_that_takes_no_writes_is_not_up(make_server, server):
    one = make_server(environ={"PADDLE_DS_REDIS_URL": server.url})
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)  # a replica is read-only
    assert up(one) == "0.0"


def test_a_wrong_url_is_an_error_that_does_not_repeat_the_password():
    with pytest.raises(ConfigError, match="expected a URL with redis://") as caught:
        settings.load({"PADDLE_DS_REDIS_URL": "http://:hunter2@host"})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected redis://") as caught:
        connect("redis://:hunter2@host:no-port/0")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(settings.load({"PADDLE_DS_REDIS_URL": "redis://:hunter2@host"}))
