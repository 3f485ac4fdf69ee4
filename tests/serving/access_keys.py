"""Keys for tests of access: a file of them, and the headers to send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle_ds_serving.access import keys as records
from paddle_ds_serving.access.scopes import parse_scopes


def key_of(key_id: str) -> str:
    """The key that goes with an id, the same every time."""
    return f"pds-{key_id}-0123456789abcdef"


def bearer(key_id: str) -> dict[str, str]:
    """The header that presents it."""
    return {"authorization": f"Bearer {key_of(key_id)}"}


def entry(key_id: str, *scopes: str, rpm: int | None = None, tpm: int | None = None) -> records.ApiKey:
    return records.ApiKey(key_id, records.hash_of(key_of(key_id)), parse_scopes(list(scopes)), rpm, tpm)


def write_keys(path: Path, *entries: records.ApiKey) -> dict[str, Any]:
    """Write the file; the result is the environment of a server that uses it."""
    records.write(path, entries, as_json_lines=False)
    return {"PADDLE_DS_API_KEYS_FILE": str(path)}


#: one key for each scope
EACH = (entry("inferer", "infer"), entry("scraper", "metrics"), entry("admin", "admin"))
