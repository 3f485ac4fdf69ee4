"""From the table of operations to an OpenAPI 3.1 document. Schemas come from the types that requests are read with."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, inspect

from paddle_ds import __version__
from paddle_ds.errors import InternalError, InvalidRequest, PaddleDSError, UnsupportedParameter
from paddle_ds_serving.access.errors import InvalidApiKey, PermissionDenied, RateLimitExceeded
from paddle_ds_serving.access.scopes import Scope, scope_of
from paddle_ds_serving.http_errors import ErrorResponse, UnsupportedMediaType
from paddle_ds_serving.openapi import OPERATIONS, Operation

_Schema = dict[str, Any]
_JSON = "application/json"
_REF = "#/components/schemas/{name}"
_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")
_TOO_LARGE = (413, "request_too_large")
_ABOUT = (
    "An inference server that speaks OpenAI's API. A field that is not in a schema is refused, or accepted only with a value "
    "that asks for nothing. Keys are asked for once the server has some; administration never works without one."
)
_STREAM = "Server-sent events: `data: ` and the JSON of x-event-schema, or of the error object; `data: [DONE]` at the end."
_HEADERS: dict[str, tuple[str, _Schema]] = {
    "x-request-id": ("The request's name in the server's log.", {"type": "string"}),
    "x-weight-version": ("Which weights answered.", {"type": "string"}),
    "x-cache": ("Whether the answer was kept from an earlier request.", {"enum": ["hit", "miss"]}),
    "retry-after": ("Seconds after which to try again.", {"type": "integer"}),
    "retry-after-ms": ("The same in milliseconds.", {"type": "integer"}),
    "www-authenticate": ("What a key needs.", {"type": "string"}),
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a JWT. The names beside it are scopes."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same as a header of its own."},
}


def document(operations: Iterable[Operation] = OPERATIONS) -> dict[str, Any]:
    """The document, ready to be encoded."""
    operations = tuple(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(_path(operation.rule), {})[operation.method.lower()] = _operation(operation)
    headers = {name: {"description": about, "schema": schema} for name, (about, schema) in _HEADERS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Paddle-DS", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _schemas(operations), "headers": headers, "securitySchemes": _SECURITY},
    }


def errors_of(operation: Operation) -> dict[int, list[str]]:
    """Status -> codes that the route can answer with, those of every route included."""
    kinds: list[type[PaddleDSError]] = [InternalError]
    scope = scope_of(operation.rule)
    if scope is not None:
        kinds += [InvalidApiKey, PermissionDenied]
    if scope is Scope.INFER:
        kinds.append(RateLimitExceeded)
    pairs = list(operation.codes)
    if operation.body is not None:
        kinds += [InvalidRequest, UnsupportedParameter, UnsupportedMediaType]
        pairs.append(_TOO_LARGE)
    pairs += [(kind.http_status, kind.code) for kind in (*kinds, *operation.errors)]
    found: dict[int, set[str]] = collections.defaultdict(set)
    for status, code in pairs:
        found[status].add(code)
    return {status: sorted(codes) for status, codes in sorted(found.items())}


def _path(rule: str) -> str:
    return _VARIABLE.sub(r"{\1}", rule)


def _operation(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {str(operation.status): _answer(operation, "The answer")}
    if operation.unwell:
        responses["503"] = _answer(operation, "The same, while requests are not answered", "retry-after", "retry-after-ms")
    for status, codes in errors_of(operation).items():
        responses[str(status)] = {
            "description": f"Code: {', '.join(f'`{code}`' for code in codes)}",
            "headers": _headers("x-request-id", *_headers_of(status)),
            "content": {_JSON: {"schema": _schema(ErrorResponse)}},
        }
    written: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": responses,
    }
    scope = scope_of(operation.rule)
    written["security"] = [] if scope is None else [{scheme: [scope.value]} for scheme in _SECURITY]
    if names := _VARIABLE.findall(operation.rule):
        about = "May have slashes, which are sent as they are."
        string = {"type": "string"}
        written["parameters"] = [
            {"name": name, "in": "path", "required": True, "description": about, "schema": string} for name in names
        ]
    if operation.body is not None:
        content = {"schema": _schema(operation.body), "example": operation.example}
        written["requestBody"] = {"required": True, "content": {_JSON: content}}
    return written


def _answer(operation: Operation, about: str, *headers: str) -> dict[str, Any]:
    content: dict[str, Any] = {operation.text: {"schema": {"type": "string"}}}
    if operation.answer is not None:
        content = {_JSON: {"schema": _schema(operation.answer)}}
    if operation.event is not None:
        schema = {"type": "string", "description": _STREAM}
        content["text/event-stream"] = {"schema": schema, "x-event-schema": _schema(operation.event)}
    more = ("x-cache", "x-weight-version") if operation.cached else ()
    return {"description": about, "headers": _headers("x-request-id", *more, *headers), "content": content}


def _headers_of(status: int) -> tuple[str, ...]:
    if status in (429, 503):
        return "retry-after", "retry-after-ms"
    return ("www-authenticate",) if status in (401, 403) else ()


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _schema(kind: Any) -> _Schema:
    return msgspec.json.schema_components([kind], ref_template=_REF)[0][0]


def _schemas(operations: tuple[Operation, ...]) -> dict[str, _Schema]:
    sent = [kind for operation in operations for kind in (operation.answer, operation.event) if kind is not None]
    sent.append(ErrorResponse)
    bodies = [operation.body for operation in operations if operation.body is not None]
    _, found = msgspec.json.schema_components([*sent, *bodies], ref_template=_REF)
    schemas = dict(sorted(found.items()))
    for schema in schemas.values():  # docstrings are reStructuredText over several lines
        schema["description"] = " ".join(schema["description"].replace("``", "`").split())
    for struct in _structs(inspect.multi_type_info(sent)):
        if not struct.cls.__struct_config__.omit_defaults:  # then a field with a default is sent all the same
            always = [field.encode_name for field in msgspec.structs.fields(struct.cls) if field.default is not UNSET]
            schemas[struct.cls.__name__]["required"] = always
    return schemas


def _structs(kinds: Iterable[inspect.Type]) -> Iterator[inspect.StructType]:
    """All records in types, also those inside others."""
    for kind in kinds:
        match kind:
            case inspect.StructType():
                yield kind
                yield from _structs(field.type for field in kind.fields)
            case inspect.UnionType():
                yield from _structs(kind.types)
            case inspect.ListType():
                yield from _structs([kind.item_type])
            case inspect.DictType():
                yield from _structs([kind.value_type])
