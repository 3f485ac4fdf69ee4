"""Access on a real Gunicorn: what openai-python makes of refusals, quotas over all workers, a key that is revoked meanwhile."""

from __future__ import annotations

import httpx
import openai
import pytest
from access_keys import bearer, entry, key_of, write_keys
from fake_engine import ANSWERS
from gunicorn_process import GunicornProcess, eventually

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory, tokenizer_dir):
    directory = tmp_path_factory.mktemp("access")
    entries = [entry("team", "infer"), entry("scraper", "metrics"), entry("few", "infer", rpm=5), entry("short", "infer", tpm=50)]
    environ = write_keys(directory / "keys.yaml", *entries, entry("leaver", "infer"))
    process = GunicornProcess(directory / "0", tokenizer_dir, ANSWERS, num_workers=2, more_environ=environ)
    process.rest = (directory / "keys.yaml", entries)
    yield process
    process.close()


def talk(gunicorn, api_key, **fields):
    """The whole answer, or the list of its chunks."""
    with openai.OpenAI(base_url=f"{gunicorn.url}/v1", api_key=api_key, max_retries=0) as client:
        answer = client.chat.completions.create(model="tiny-r1", messages=MESSAGES, **fields)
        return list(answer) if fields.get("stream") else answer


def test_a_key_is_all_that_the_sdk_needs(gunicorn):
    assert talk(gunicorn, key_of("team")).choices[0].message.content == "Hello world"
    assert len(talk(gunicorn, key_of("team"), stream=True)) > 3


@pytest.mark.parametrize(
    ("key_id", "kind", "code"),
    [
        ("nobody", openai.AuthenticationError, "invalid_api_key"),
        ("scraper", openai.PermissionDeniedError, "permission_denied"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_refusals_become_the_right_exceptions(gunicorn, key_id, kind, code, stream):
    with pytest.raises(kind) as caught:
        talk(gunicorn, key_of(key_id), stream=stream)
    assert caught.value.code == code


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_quota_of_tokens_becomes_a_rate_limit_error(gunicorn, stream):
    def talk_on():
        for _ in range(20):
            talk(gunicorn, key_of("short"), stream=stream, max_tokens=30)

    with pytest.raises(openai.RateLimitError) as caught:
        talk_on()
    assert caught.value.code == "rate_limit_exceeded"
    assert float(caught.value.response.headers["retry-after-ms"]) > 0


def test_all_workers_share_one_quota(gunicorn):
    statuses = []
    for _ in range(16):  # a connection each, so that both workers get some
        with httpx.Client() as client:
            statuses.append(client.get(f"{gunicorn.url}/v1/models", headers=bearer("few")).status_code)
    assert 5 <= statuses.count(200) <= 7  # with buckets of their own it would be up to ten
    assert statuses[:5] == [200] * 5


def test_a_revoked_key_is_refused_by_every_worker(gunicorn):
    def status():
        with httpx.Client() as client:
            return client.get(f"{gunicorn.url}/v1/models", headers=bearer("leaver")).status_code

    assert status() == 200
    path, entries = gunicorn.rest
    write_keys(path, *entries)
    assert eventually(lambda: [status() for _ in range(8)] == [401] * 8)


def test_the_log_never_has_a_key(gunicorn):
    talk(gunicorn, key_of("team"))
    assert eventually(lambda: '"key_id": "team"' in gunicorn.log)
    assert "0123456789abcdef" not in gunicorn.log
