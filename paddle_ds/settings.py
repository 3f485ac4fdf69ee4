"""Every environment variable the project reads, with its type, default and meaning.

Nothing else in the project touches ``os.environ`` for configuration. A value that does not parse is an error, not a default.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paddle_ds.errors import ConfigError

PREFIX = "PADDLE_DS_"
#: by the tests, and by setup.py, which cannot import this
_READ_ELSEWHERE = {PREFIX + "TEST_DATA", PREFIX + "PREBUILD"}


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return text

    return parse


def _nonempty(text: str) -> str:
    if not text:
        raise ValueError("some text, or no such variable at all")
    return text


def _not_negative_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError("a number of at least 0")
    return value


def _redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("a URL with redis://, rediss:// or unix://")
    return text


def _positive_int(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,9}", text):
        raise ValueError("a whole number of at least 1")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("a number above 0")
    return value


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False, "": False}
    if text.lower() not in values:
        raise ValueError("1 or 0")
    return values[text.lower()]


def _default_runtime_dir() -> str:
    return str(Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"paddle-ds-{os.getuid()}")


def _default_cache_dir() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddle-ds")


@dataclasses.dataclass(frozen=True)
class Variable:
    """One row of the table."""

    field: str
    parse: Callable[[str], Any]
    default: Any
    meaning: str
    #: its value is never shown
    secret: bool = False

    @property
    def name(self) -> str:
        return PREFIX + self.field.upper()


TABLE: tuple[Variable, ...] = (
    Variable("log_level", _choice("debug", "info", "warning", "error"), "info", "least severe log line that is written"),
    Variable("log_format", _choice("text", "json"), "text", "how log lines are written to standard error"),
    Variable("runtime_dir", _nonempty, _default_runtime_dir, "where sockets of running servers live (mode 0700)"),
    Variable("cache_dir", _nonempty, _default_cache_dir, "where built operators and fetched checkpoints are kept"),
    Variable("num_threads", _positive_int, None, "threads of the engine's kernels (default: the cores this process may use)"),
    Variable(
        "hub_source", _choice("bos", "huggingface", "aistudio"), "bos", "hub that PaddleNLP's downloader asks for a model name"
    ),
    Variable("hub_timeout_s", _positive_float, 30.0, "seconds without an answer from the hub before giving up"),
    Variable("header_timeout_s", _positive_float, 10.0, "seconds that a client may take to send the header of a request"),
    Variable("body_timeout_s", _positive_float, 60.0, "seconds that a client may take to send the body of a request"),
    Variable(
        "write_timeout_s",
        _positive_float,
        60.0,
        "seconds in which a client has to read the next 16 KiB of an answer, or it is given up",
    ),
    Variable("sse_ping_s", _positive_float, 15.0, "seconds of silence after which a stream gets a keep-alive comment"),
    Variable(
        "engine_socket",
        _nonempty,
        None,
        "path of the engine's socket or of the pointer to it, for an HTTP worker (set by `paddle-ds serve`)",
    ),
    Variable("supervisor_pid", _positive_int, None, "process with which a child of it ends (set by `paddle-ds serve`)"),
    Variable("canary_every_s", _positive_float, 30.0, "seconds between two canaries, short answers that show the engine works"),
    Variable("canary_prompt", _nonempty, "1+1=", "what the canary is asked"),
    Variable("canary_expect", _nonempty, None, "text that the canary's answer must contain (default: any will do)"),
    Variable("drain_s", _positive_float, 600.0, "seconds that streams of an engine may go on after a switch to another"),
    Variable("api_key", _nonempty, None, "a key with every scope, for an HTTP worker", secret=True),
    Variable("api_keys_file", _nonempty, None, "file with the hashes of API keys (see `paddle-ds keys`)"),
    Variable("jwt_key_file", _nonempty, None, "file with the key that checks JSON Web Tokens: an RSA public key, or a secret"),
    Variable("jwt_audience", _nonempty, None, "audience that tokens must be for"),
    Variable("jwt_issuer", _nonempty, None, "issuer that tokens must come from (default: any that has the key)"),
    Variable("redis_url", _redis_url, None, "Redis that several servers share quotas and cached answers through", secret=True),
    Variable("response_cache_s", _not_negative_float, 0.0, "seconds that deterministic answers are kept (0: not at all)"),
    Variable("operators", _nonempty, None, "path of a built library of operators, instead of building one"),
    Variable(
        "max_isa", _choice("avx512", "avx2", "baseline"), "avx512", "best instruction set our own loops may use (for tests)"
    ),
    Variable("device_profiles", _nonempty, None, "directory with profiles of chips beside those that come with the project"),
    Variable("log_prompts", _flag, False, "write the prompt of each request into its log line"),
    Variable("tracing", _flag, False, "send a trace of each request where the OTEL_… variables say (needs paddle-ds[tracing])"),
    Variable("content_filter_file", _nonempty, None, "file with words and patterns that prompts and answers must not have"),
    Variable("feedback_dir", _nonempty, None, "directory that keeps what POST /v1/feedback brings (default: it is refused)"),
    Variable("strict", _flag, False, "turn every silent fallback into an error"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The parsed table. Fields are the rows of :data:`TABLE`."""

    log_level: str
    log_format: str
    runtime_dir: str
    cache_dir: str
    num_threads: int | None
    hub_source: str
    hub_timeout_s: float
    header_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    sse_ping_s: float
    engine_socket: str | None
    supervisor_pid: int | None
    canary_every_s: float
    canary_prompt: str
    canary_expect: str | None
    drain_s: float
    api_key: str | None = dataclasses.field(repr=False)
    api_keys_file: str | None
    jwt_key_file: str | None
    jwt_audience: str | None
    jwt_issuer: str | None
    redis_url: str | None = dataclasses.field(repr=False)
    response_cache_s: float
    operators: str | None
    max_isa: str
    device_profiles: str | None
    log_prompts: bool
    tracing: bool
    content_filter_file: str | None
    feedback_dir: str | None
    strict: bool


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment.

    Raises:
        ConfigError: a variable has a value that does not parse, or starts with ``PADDLE_DS_`` and is not in the table.
    """
    environ = os.environ if environ is None else environ
    known = {variable.name for variable in TABLE} | _READ_ELSEWHERE
    for name in environ:
        if name.startswith(PREFIX) and name not in known:
            raise ConfigError(f"environment: unknown variable {name}; known: {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for variable in TABLE:
        text = environ.get(variable.name)
        if text is None:
            values[variable.field] = variable.default() if callable(variable.default) else variable.default
            continue
        try:
            values[variable.field] = variable.parse(text)
        except ValueError as error:
            shown = "…" if variable.secret else repr(text)
            raise ConfigError(f"environment: {variable.name}={shown} is wrong; expected {error}") from error
    return Settings(**values)
