"""The table of environment variables."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from paddle_ds import settings
from paddle_ds.errors import ConfigError

GOOD: list[tuple[str, str, Any]] = [
    ("LOG_LEVEL", "debug", "debug"),
    ("LOG_FORMAT", "json", "json"),
    ("RUNTIME_DIR", "/run/x", "/run/x"),
    ("CACHE_DIR", "relative", "relative"),
    ("NUM_THREADS", "4", 4),
    ("HUB_SOURCE", "huggingface", "huggingface"),
    ("HUB_TIMEOUT_S", "0.5", 0.5),
    ("HEADER_TIMEOUT_S", "2.5", 2.5),
    ("BODY_TIMEOUT_S", "2.5", 2.5),
    ("WRITE_TIMEOUT_S", "2.5", 2.5),
    ("SSE_PING_S", "1e2", 100.0),
    ("ENGINE_SOCKET", "/run/x/engine.sock", "/run/x/engine.sock"),
    ("SUPERVISOR_PID", "4711", 4711),
    ("API_KEY", "0123456789abcdef", "0123456789abcdef"),
    ("API_KEYS_FILE", "/etc/keys.yaml", "/etc/keys.yaml"),
    ("JWT_KEY_FILE", "/etc/jwt.pem", "/etc/jwt.pem"),
    ("JWT_AUDIENCE", "paddle-ds", "paddle-ds"),
    ("JWT_ISSUER", "https://id.example.org", "https://id.example.org"),
    ("CANARY_EVERY_S", "5", 5.0),
    ("CANARY_PROMPT", "6*7=", "6*7="),
    ("CANARY_EXPECT", "42", "42"),
    ("DRAIN_S", "60", 60.0),
    ("REDIS_URL", "redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
    ("RESPONSE_CACHE_S", "600", 600.0),
    ("OPERATORS", "/tmp/ops.so", "/tmp/ops.so"),
    ("MAX_ISA", "avx2", "avx2"),
    ("DEVICE_PROFILES", "/etc/chips", "/etc/chips"),
    ("LOG_PROMPTS", "1", True),
    ("TRACING", "1", True),
    ("CONTENT_FILTER_FILE", "/etc/filter.yaml", "/etc/filter.yaml"),
    ("FEEDBACK_DIR", "/var/lib/feedback", "/var/lib/feedback"),
    ("DEVICE_PROFILES", "/etc/chips", "/etc/chips"),
    ("STRICT", "1", True),
    ("STRICT", "Yes", True),
    ("STRICT", "off", False),
    ("STRICT", "", False),
]
BAD = [
    ("LOG_LEVEL", "INFO", "one of debug, info, warning, error"),
    ("LOG_FORMAT", "", "one of text, json"),
    ("RUNTIME_DIR", "", "some text"),
    ("CACHE_DIR", "", "some text"),
    ("NUM_THREADS", "0", "a whole number of at least 1"),
    ("NUM_THREADS", "-1", "a whole number of at least 1"),
    ("NUM_THREADS", "1.5", "a whole number of at least 1"),
    ("NUM_THREADS", "four", "a whole number of at least 1"),
    ("NUM_THREADS", "", "a whole number of at least 1"),
    ("NUM_THREADS", "9" * 5000, "a whole number of at least 1"),
    ("HUB_SOURCE", "ftp", "one of bos, huggingface, aistudio"),
    ("HUB_TIMEOUT_S", "0", "a number above 0"),
    ("HUB_TIMEOUT_S", "nan", "a number above 0"),
    ("SSE_PING_S", "inf", "a number above 0"),
    ("HEADER_TIMEOUT_S", "0", "a number above 0"),
    ("SSE_PING_S", "soon", "a number above 0"),
    ("ENGINE_SOCKET", "", "some text"),
    ("RESPONSE_CACHE_S", "-1", "a number of at least 0"),
    ("RESPONSE_CACHE_S", "inf", "a number of at least 0"),
    ("STRICT", "2", "1 or 0"),
]


def test_an_empty_environment_gives_the_defaults() -> None:
    current = settings.load({})
    assert (current.log_level, current.log_format, current.hub_source, current.strict) == ("info", "text", "bos", False)
    assert (current.num_threads, current.engine_socket) == (None, None)
    assert current.runtime_dir
    assert current.cache_dir


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_value_is_parsed(name: str, text: str, value: Any) -> None:
    assert getattr(settings.load({f"PADDLE_DS_{name}": text}), name.lower()) == value


@pytest.mark.parametrize(("name", "text", "expected"), BAD, ids=lambda value: value[:12])
def test_a_bad_value_is_an_error_with_what_is_expected(name: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"PADDLE_DS_{name}='{text}' is wrong; expected {expected}"):
        settings.load({f"PADDLE_DS_{name}": text})


def test_an_unknown_variable_is_an_error_with_those_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown variable PADDLE_DS_LOGLEVEL; known: .*PADDLE_DS_LOG_LEVEL"):
        settings.load({"PADDLE_DS_LOGLEVEL": "info"})


def test_other_programs_variables_are_not_ours() -> None:
    assert settings.load({"PADDLE_PDX": "1", "PADDLE_DS": "x", "HOME": "/"}) == settings.load({})


def test_the_tests_own_variable_is_known() -> None:
    settings.load({"PADDLE_DS_TEST_DATA": "/data"})


def test_the_real_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_NUM_THREADS", "3")
    assert settings.load().num_threads == 3


def test_directories_follow_the_desktop_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    current = settings.load({})
    assert current.runtime_dir.startswith("/run/user/7/paddle-ds-")
    assert current.cache_dir == "/cache/paddle-ds"


def test_rows_and_fields_are_the_same() -> None:
    assert [row.field for row in settings.TABLE] == [field.name for field in dataclasses.fields(settings.Settings)]
    assert all(row.meaning for row in settings.TABLE)
    assert {name for name, _, _ in GOOD} == {row.name.removeprefix("PADDLE_DS_") for row in settings.TABLE}
