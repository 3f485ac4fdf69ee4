"""From the bytes of a request body to a typed record, or to an error that names the field."""

from __future__ import annotations

import dataclasses
import difflib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from paddle_ds.errors import InvalidRequest, RequestError, UnsupportedParameter

T = TypeVar("T", bound=msgspec.Struct)

#: Objects and lists of a body; more than a prompt of a million tokens has in source code, where each bracket counts, too. A body
#: of millions of them would take gigabytes and hold up all other requests of its worker for seconds.
MAX_BRACKETS = 250_000
#: names longer than this resemble none that is known
_MAX_COMPARED_CHARACTERS = 64

_preparing = threading.Lock()
_known: set[type[msgspec.Struct]] = set()

#: what msgspec writes before the path of a field
_AT = " - at `"
_MISSING = re.compile(r"missing required field `(?P<name>[^`]+)`")
_UNKNOWN = re.compile(r"contains unknown field `(?P<name>[^`]+)`")


def _is_null(value: Any) -> bool:
    return value is None


@dataclasses.dataclass(frozen=True)
class Refused:
    """A field that is known and not supported.

    Attributes:
        why: the reason, and what to do instead.
        harmless: values that ask for nothing, such as ``null``; they are accepted.
    """

    why: str
    harmless: Callable[[Any], bool] = _is_null


def decode(body: bytes, kind: type[T], refused: Mapping[str, Refused]) -> T:
    """Read ``body`` as JSON into ``kind``.

    Raises:
        InvalidRequest: not JSON, not an object, too many brackets, a field is missing or of the wrong type.
        UnsupportedParameter: a field is in ``refused``, or is neither there nor in ``kind``.
    """
    if not body.strip():
        raise InvalidRequest("the request body is empty; send a JSON object")
    if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
        raise InvalidRequest(f"the request body has more than {MAX_BRACKETS} opening brackets")
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the request body is nested too deeply") from error
    if not isinstance(raw, dict):
        raise InvalidRequest(f"the request body is a JSON {_json_type(raw)}; send an object")
    fields = kind.__struct_fields__
    for name in [name for name in raw if name not in fields]:
        check_refused(name, raw.pop(name), refused, fields)
    try:
        return msgspec.convert(raw, _prepared(kind))
    except msgspec.ValidationError as error:
        raise _readable(str(error)) from error


def _prepared(kind: type[T]) -> type[T]:
    """``kind``, after msgspec has collected what it must know of it.

    It does so at the first use, and not under a lock: a thread that comes meanwhile finds the half of it, and the process ends
    (a segmentation fault in msgspec 0.22).
    """
    if kind not in _known:
        with _preparing:
            msgspec.json.Decoder(kind)
            _known.add(kind)
    return kind


def check_refused(name: str, value: Any, refused: Mapping[str, Refused], known: Iterable[str]) -> None:
    """Raise :class:`UnsupportedParameter` unless ``name`` is a refused field with a harmless value."""
    rule = refused.get(name)
    if rule is None:
        compares = len(name) <= _MAX_COMPARED_CHARACTERS
        close = difflib.get_close_matches(name, [*known, *refused], n=3, cutoff=0.6) if compares else []
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UnsupportedParameter(f"unknown parameter {name!r}{hint}", param=name)
    if not rule.harmless(value):
        raise UnsupportedParameter(f"{name} is not supported: {rule.why}", param=name)


def _readable(message: str) -> RequestError:
    problem, at, path = message.rpartition(_AT)
    if not at:
        problem, path = message, "$"
    path = path.removesuffix("`").removeprefix("$").lstrip(".")
    if missing := _MISSING.search(problem):
        param = ".".join(filter(None, (path, missing["name"])))
        return InvalidRequest(f"{param} is required", param=param)
    if unknown := _UNKNOWN.search(problem):
        param = ".".join(filter(None, (path, unknown["name"])))
        return UnsupportedParameter(f"unknown parameter {param!r}", param=param)
    param = path.replace("[...]", "")
    return InvalidRequest(f"{path or 'the request body'}: {problem[:1].lower()}{problem[1:]}", param=param or None)


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names[type(value)]
