"""OpenAI-style chat messages to what chat templates expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paddle_ds.errors import InvalidRequest, UnsupportedParameter

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_KEPT = ("name", "tool_calls", "tool_call_id")
#: fields of an answer that clients send back with the history; no template should see them
_DROPPED = frozenset({"reasoning_content", "reasoning", "refusal", "annotations", "audio", "function_call"})


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check messages and bring them into the form templates are written for.

    ``content`` becomes a string (text parts are joined with nothing between them), or stays ``None`` for an assistant
    that only called tools. ``developer`` becomes ``system``. What an assistant thought (``reasoning_content``,
    ``reasoning``) is left out, as DeepSeek asks for.

    Raises:
        InvalidRequest: a field has the wrong type or value; ``param`` names it, as in ``messages[2].content``.
        UnsupportedParameter: a message carries a field that is not known.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequest("messages must be a list", param="messages")
    if not messages:
        raise InvalidRequest("messages is empty; at least one message is needed", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, param: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{param} must be an object with a role and content", param=param)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{param}.role is {role!r}; expected one of {', '.join(_ROLES)}", param=f"{param}.role")
    for key, value in message.items():
        if key not in ("role", "content", *_KEPT) and key not in _DROPPED and value is not None:
            raise UnsupportedParameter(f"{param}.{key} is not supported", param=f"{param}.{key}")
    out: dict[str, Any] = {"role": _ROLES[role], "content": _content(message, role, f"{param}.content")}
    out.update({key: message[key] for key in _KEPT if message.get(key) is not None})
    _check_tool_calls(out, param)
    for key in ("name", "tool_call_id"):
        if not isinstance(out.get(key, ""), str):
            raise InvalidRequest(f"{param}.{key} must be a string", param=f"{param}.{key}")
    return out


def _content(message: Mapping[str, Any], role: str, param: str) -> str | None:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        if role != "assistant":
            raise InvalidRequest(f"{param} is missing; a {role} message needs text", param=param)
        return None if message.get("tool_calls") else ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{param} must be a string or a list of text parts", param=param)
    return "".join(_part(part, f"{param}[{index}]") for index, part in enumerate(content))


def _part(part: Any, param: str) -> str:
    if not isinstance(part, Mapping):
        raise InvalidRequest(f"{param} must be an object with a type", param=param)
    kind = part.get("type")
    if kind != "text":
        raise InvalidRequest(f"{param}.type is {kind!r}; this model reads text only", param=f"{param}.type")
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{param}.text must be a string", param=f"{param}.text")
    return text


def _check_tool_calls(message: dict[str, Any], param: str) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if message["role"] != "assistant":
        raise InvalidRequest(f"{param}.tool_calls belongs to assistant messages", param=f"{param}.tool_calls")
    if not isinstance(calls, list) or not all(_is_tool_call(call) for call in calls):
        raise InvalidRequest(
            f"{param}.tool_calls must be a list of objects with a function, its name and its arguments",
            param=f"{param}.tool_calls",
        )


def _is_tool_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str) and "arguments" in function
