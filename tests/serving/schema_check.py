"""A check of JSON against a schema, for the part of JSON Schema that our documents use; another keyword is an error."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_SAYS_NOTHING = {"title", "description", "default"}


def problems(value: Any, schema: dict[str, Any], components: dict[str, Any], at: str = "$") -> list[str]:
    """What is wrong with ``value``. A property that the schema of an object does not name counts, too."""
    schema = {key: rule for key, rule in schema.items() if key not in _SAYS_NOTHING}
    if "$ref" in schema:
        return problems(value, components[schema["$ref"].removeprefix("#/components/schemas/")], components, at)
    if "anyOf" in schema:
        tried = [problems(value, one, components, at) for one in schema["anyOf"]]
        return [] if [] in tried else min(tried, key=len)
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{at}: {value!r} is not one of {schema['enum']}"]
    unknown = schema.keys() - {"type", "properties", "required", "additionalProperties", "items"}
    assert not unknown, f"{at}: the test does not know {unknown}"
    wanted = _TYPES[schema["type"]]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        return [f"{at}: {value!r} is no {schema['type']}"]
    found: list[str] = []
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        found += [f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, one in value.items():
            if name in known:
                found += problems(one, known[name], components, f"{at}.{name}")
            elif isinstance(others, dict):
                found += problems(one, others, components, f"{at}.{name}")
            elif known or others is False:
                found.append(f"{at}: {name} is not in the schema")
    if isinstance(value, list) and "items" in schema:
        for number, one in enumerate(value):
            found += problems(one, schema["items"], components, f"{at}[{number}]")
    return found
