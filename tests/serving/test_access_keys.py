"""The file of keys, the command that writes it, and what happens when it changes under a running server."""

from __future__ import annotations

import json
import logging
import os

import pytest
import yaml
from access_keys import EACH, bearer, entry, key_of, write_keys
from click.testing import CliRunner

from paddle_ds import settings
from paddle_ds.errors import ConfigError
from paddle_ds_serving.access import keys as records
from paddle_ds_serving.access.command import keys
from paddle_ds_serving.access.guard import Guard
from paddle_ds_serving.access.watched import Watched

HASH = "sha256:" + "0" * 64


def run(*arguments):
    return CliRunner().invoke(keys, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.mark.parametrize("name", ["keys.yaml", "keys.jsonl"])
def test_create_list_revoke(tmp_path, name):
    path = tmp_path / name
    made = run("create", "--id", "team-a", "--scopes", "infer,metrics", "--rpm", 60, "--tpm", 1000, "--file", path)
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert len(key) > 40
    assert path.stat().st_mode & 0o777 == 0o600
    assert key not in path.read_text(encoding="utf-8")
    (found,) = records.read(path)
    assert records.find([found], key) == found
    assert (found.requests_per_minute, found.tokens_per_minute) == (60, 1000)
    assert run("create", "--id", "team-b", "--file", path).exit_code == 0
    listed = run("list", "--file", path).output
    assert "team-a\tinfer,metrics\t60 requests/min, 1000 tokens/min\t20" in listed
    assert "team-b\tinfer\tno quota\t" in listed
    assert path.read_text(encoding="utf-8").startswith("{") == (name == "keys.jsonl")
    for key_id in ("team-a", "team-b"):
        assert run("revoke", "--id", key_id, "--file", path).exit_code == 0
    assert records.read(path) == ()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_key_can_be_made_in_a_file_that_was_written_by_hand(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f'{{"id": "a", "hash": "{HASH}", "scopes": ["infer"]}}\n', encoding="utf-8")
    assert run("create", "--id", "b", "--file", path).exit_code == 0
    assert [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "--id", "a", "--file", "FILE"], "already"),
        (["create", "--id", "no spaces", "--file", "FILE"], "expected up to 128"),
        (["create", "--id", "jwt:me", "--file", "FILE"], "choose another id"),
        (["create", "--id", "b", "--scopes", "all", "--file", "FILE"], "expected some of infer, metrics, admin"),
        (["create", "--id", "b", "--scopes", ",", "--file", "FILE"], "expected some of"),
        (["create", "--id", "b", "--file", "FILE/no/such"], "Not a directory"),
        (["revoke", "--id", "b", "--file", "FILE"], "there are: a"),
        (["list", "--file", "FILE.not"], "cannot be read"),
    ],
)
def test_a_command_that_cannot_be_done_changes_nothing(tmp_path, arguments, says):
    path = tmp_path / "keys.yaml"
    write_keys(path, entry("a", "infer"))
    before = path.read_bytes()
    done = run(*[argument.replace("FILE", str(path)) for argument in arguments])
    assert isinstance(done.exception, ConfigError)
    assert says in done.exception.message
    assert path.read_bytes() == before


GOOD = {"id": "a", "hash": HASH, "scopes": ["infer"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a list"),
        ("a: b", "expected a list"),
        ("- [", "neither YAML nor JSON lines"),
        ('{"id": "a"', "neither YAML nor JSON lines"),
        ("- a", "key 1: expected an object"),
        (yaml.safe_dump([{**GOOD, "rpm": 1}]), "unknown field 'rpm'; known: id, hash, scopes"),
        (yaml.safe_dump([{**GOOD, "id": ""}]), "id is ''"),
        (yaml.safe_dump([{**GOOD, "id": "environment"}]), "choose another id"),
        (yaml.safe_dump([{**GOOD, "hash": "sha256:abc"}]), "64 hexadecimal digits"),
        (yaml.safe_dump([{**GOOD, "scopes": []}]), "expected some of"),
        (yaml.safe_dump([{**GOOD, "scopes": "infer"}]), "expected a list"),
        (yaml.safe_dump([{**GOOD, "scopes": ["root"]}]), "expected some of infer, metrics, admin"),
        (yaml.safe_dump([{**GOOD, "tokens_per_minute": 0}]), "tokens_per_minute is 0"),
        (yaml.safe_dump([{**GOOD, "requests_per_minute": True}]), "requests_per_minute is True"),
        (yaml.safe_dump([GOOD, GOOD]), "more than one key has the id of 'a'"),
        (yaml.safe_dump([GOOD, {**GOOD, "id": "b"}]), "more than one key has the hash of 'a'"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(text, says):
    with pytest.raises(ConfigError, match=r"keys\.yaml") as caught:
        records.parse(text, "keys.yaml")
    assert says in caught.value.message


def test_a_file_that_everybody_may_write_is_refused(tmp_path):
    environ = write_keys(tmp_path / "keys.yaml", *EACH)
    (tmp_path / "keys.yaml").chmod(0o602)
    with pytest.raises(ConfigError, match="everybody may write it"):
        Guard(settings.load(environ))


@pytest.mark.parametrize("key", ["short", "x" * 15, "has a space in it", "schl\xfcssel-schl\xfcssel", "new\nline-new-line-"])
def test_a_weak_key_in_the_environment_is_refused_and_not_repeated(key):
    with pytest.raises(ConfigError, match="at least 16 visible") as caught:
        Guard(settings.load({"PADDLE_DS_API_KEY": key}))
    assert key not in str(caught.value)


def test_settings_do_not_show_the_key():
    assert key_of("owner") not in repr(settings.load({"PADDLE_DS_API_KEY": key_of("owner")}))


def test_a_file_without_entries_lets_nobody_in(make_server, tmp_path):
    server = make_server(environ=write_keys(tmp_path / "keys.yaml"))
    assert server.get("/v1/models").status_code == 401


def test_a_missing_file_is_an_error_at_the_start(make_server, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        make_server(environ={"PADDLE_DS_API_KEYS_FILE": str(tmp_path / "none")})


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def watched(tmp_path):
    """A file that is looked at, the path, and the clock that says when."""
    path, clock = tmp_path / "keys.yaml", Clock()
    write_keys(path, entry("a", "infer"))
    return Watched(path, records.read, clock_s=clock), path, clock


def ids(watched):
    return [key.id for key in watched.value]


def test_a_change_is_seen_within_a_second(watched):
    file, path, clock = watched
    write_keys(path, entry("b", "infer"))
    assert ids(file) == ["a"]
    clock.now_s += 1
    assert ids(file) == ["b"]


@pytest.mark.parametrize("damage", ["", "- [", "null", "- {id: a}"])
def test_a_damaged_file_keeps_the_old_keys_and_is_told_once(watched, caplog, damage):
    file, path, clock = watched
    path.write_text(damage, encoding="utf-8")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            clock.now_s += 1
            assert ids(file) == ["a"]
    assert [record.getMessage() for record in caplog.records] == ["access.reload_failed"]
    write_keys(path, entry("c", "infer"))
    clock.now_s += 1
    assert ids(file) == ["c"]


def test_a_file_that_is_gone_keeps_the_old_keys(watched):
    file, path, clock = watched
    path.unlink()
    clock.now_s += 1
    assert ids(file) == ["a"]
    write_keys(path, entry("d", "infer"))
    clock.now_s += 1
    assert ids(file) == ["d"]


def test_a_change_of_the_same_size_is_seen(watched):
    file, path, clock = watched
    text = path.read_text(encoding="utf-8").replace("id: a", "id: z")
    path.write_text(text, encoding="utf-8")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    clock.now_s += 1
    assert ids(file) == ["z"]


def test_a_revoked_key_is_refused_by_a_running_server(make_server, tmp_path, monkeypatch):
    monkeypatch.setattr("paddle_ds_serving.access.watched.LOOK_S", 0.0)
    path = tmp_path / "keys.yaml"
    server = make_server(environ=write_keys(path, *EACH))
    assert server.get("/v1/models", headers=bearer("inferer")).status_code == 200
    assert run("revoke", "--id", "inferer", "--file", path).exit_code == 0
    assert server.get("/v1/models", headers=bearer("inferer")).status_code == 401
    assert server.get("/metrics", headers=bearer("scraper")).status_code == 200
