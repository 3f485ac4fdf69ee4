"""API keys as they are kept: hashes in a file, one entry a key.

.. code-block:: yaml

    - id: team-a                     # what logs and metrics call it
      hash: sha256:9f86d081884c7d65… # of the key; the key itself is nowhere
      scopes: [infer]
      requests_per_minute: 60        # optional, as the next
      tokens_per_minute: 20000

The same as JSON lines, one object a line. A plain SHA-256 is enough, because keys are 256 random bits and no passwords: there is
no dictionary to try.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from paddle_ds.errors import ConfigError
from paddle_ds_serving.access.scopes import ALL_SCOPES, Scope, parse_scopes

#: in logs, metrics and Redis: short and without anything that could break a line
ID_PATTERN = re.compile(r"[A-Za-z0-9._@:|/+=-]{1,128}")
#: what the ids of tokens begin with
TOKEN_PREFIX = "jwt:"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_LIMITS = ("requests_per_minute", "tokens_per_minute")
_FIELDS = ("id", "hash", "scopes", *_LIMITS, "created")
#: shorter ones from the environment are refused: they could be guessed
MIN_KEY_CHARACTERS = 16


@dataclasses.dataclass(frozen=True)
class Principal:
    """Somebody who asks, as a key or a token says it."""

    id: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    #: what metrics call it: ids of keys are few, subjects of tokens are not
    label: str = ""


@dataclasses.dataclass(frozen=True)
class ApiKey:
    """One entry of the file."""

    id: str
    hash: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    created: str | None = None

    def principal(self) -> Principal:
        return Principal(self.id, self.scopes, self.requests_per_minute, self.tokens_per_minute, self.id)

    def to_dict(self) -> dict[str, Any]:
        """The entry as the file has it."""
        entry = {**dataclasses.asdict(self), "scopes": sorted(scope.value for scope in self.scopes)}
        return {name: value for name, value in entry.items() if value is not None}


def hash_of(key: str) -> str:
    """What is stored of a key."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> str:
    """A key with 256 random bits."""
    return "pds-" + secrets.token_urlsafe(32)


def find(keys: Iterable[ApiKey], presented: str) -> ApiKey | None:
    """The entry of a presented key. Every entry is compared, in constant time: how long it takes says nothing of any key."""
    digest, found = hash_of(presented).encode(), None
    for key in keys:
        if hmac.compare_digest(digest, key.hash.encode()):
            found = key
    return found


def environment_key(key: str) -> ApiKey:
    """``PADDLE_DS_API_KEY`` as an entry with every scope: it is the owner's.

    Raises:
        ConfigError: it is too short, or holds what no header can carry. The message does not repeat it.
    """
    if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"environment: PADDLE_DS_API_KEY is wrong; expected at least {MIN_KEY_CHARACTERS} visible ASCII characters without "
            "spaces, such as `openssl rand -hex 32` prints"
        )
    return ApiKey("environment", hash_of(key), ALL_SCOPES)


def parse(text: str, name: str) -> tuple[ApiKey, ...]:
    """The entries of a file; ``name`` is for messages.

    Raises:
        ConfigError: it is damaged, or an entry is wrong.
    """
    try:
        if text.lstrip().startswith("{"):
            raw: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            raw = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"{name}: neither YAML nor JSON lines: {problem}") from error
    if not isinstance(raw, list):
        raise ConfigError(f"{name}: expected a list of keys ([] for none), or one JSON object a line")
    keys = tuple(_entry(entry, f"{name}: key {number}") for number, entry in enumerate(raw, 1))
    for field in ("id", "hash"):
        values = [getattr(key, field) for key in keys]
        twice = sorted({key.id for key in keys if values.count(getattr(key, field)) > 1})
        if twice:
            raise ConfigError(f"{name}: more than one key has the {field} of {twice[0]!r}")
    return keys


def _entry(raw: Any, where: str) -> ApiKey:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected an object with {', '.join(_FIELDS[:3])}")
    unknown = sorted(str(name) for name in raw if name not in _FIELDS)
    if unknown:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    key_id, digest, scopes = raw.get("id"), raw.get("hash"), raw.get("scopes")
    if not (isinstance(key_id, str) and ID_PATTERN.fullmatch(key_id)):
        raise ConfigError(f"{where}: id is {key_id!r}; expected up to 128 letters, digits and ._@:|/+=-")
    if key_id == "environment" or key_id.startswith(TOKEN_PREFIX):
        raise ConfigError(f"{where}: {key_id!r} is what PADDLE_DS_API_KEY or a token is called; choose another id")
    where = f"{where} ({key_id})"
    if not (isinstance(digest, str) and _HASH.fullmatch(digest)):
        raise ConfigError(f"{where}: hash is not sha256: and 64 hexadecimal digits; `paddle-ds keys create` writes it")
    if not (isinstance(scopes, list) and all(isinstance(scope, str) for scope in scopes)):
        raise ConfigError(f"{where}: scopes is {scopes!r}; expected a list")
    try:
        parsed = parse_scopes(scopes)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    for name in _LIMITS:
        value = raw.get(name)
        if value is not None and not is_limit(value):
            raise ConfigError(f"{where}: {name} is {value!r}; expected a whole number from 1 to 1000000000")
    created = raw.get("created")
    return ApiKey(key_id, digest, parsed, raw.get(_LIMITS[0]), raw.get(_LIMITS[1]), None if created is None else str(created))


def is_limit(value: Any) -> bool:
    """Whether a value can be a quota."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10**9


def read(path: Path) -> tuple[ApiKey, ...]:
    """The entries of a file.

    Raises:
        ConfigError: it cannot be read, everybody may write it, or it is damaged.
    """
    try:
        if path.stat().st_mode & 0o002:
            raise ConfigError(f"{path}: everybody may write it; `chmod 600` it first")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path))


def write(path: Path, keys: Sequence[ApiKey], *, as_json_lines: bool) -> None:
    """Replace the file in one step, readable by its owner only."""
    entries = [key.to_dict() for key in keys]
    if as_json_lines and entries:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
    else:
        text = yaml.safe_dump(entries, sort_keys=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
