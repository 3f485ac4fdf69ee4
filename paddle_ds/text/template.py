"""Chat templates: Jinja as Hugging Face renders it, on templates that nobody here has read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from paddle_ds.errors import ChatTemplateError, TokenizerError
from paddle_ds.text.budget import MAX_OUTPUT_CHARS, budget
from paddle_ds.text.sandbox import TemplateSandbox

_MAX_SOURCE_CHARS = 256 * 1024
#: marks where the last message's text ends when an answer is to continue it; private-use characters, in no real text
_END_OF_FINAL = "\ue0f1end-of-final-message\ue0f1"
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


class ChatTemplate:
    """A compiled chat template.

    Rendering follows ``transformers.apply_chat_template``: ``trim_blocks`` and ``lstrip_blocks`` are on;
    ``raise_exception``, ``strftime_now``, a ``tojson`` that leaves non-ASCII text alone, loop controls and ``{%
    generation %}`` exist; special tokens are given by name. The sandbox in :mod:`paddle_ds.text.sandbox` bounds what a
    template can do.

    Args:
        source: Jinja source.
        special_tokens: ``bos_token``, ``eos_token``, … as text.
        tool_source: another template, used where tools are given.

    Raises:
        ChatTemplateError: the source is not a valid template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None, tool_source: str | None = None) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        environment = TemplateSandbox()
        self._template = _compile(environment, source)
        self._tool_template = _compile(environment, tool_source) if tool_source is not None else None
        sources = [text for text in (source, tool_source) if text is not None]
        #: variables that the template asks for; a request's template argument that is not among them does nothing
        self.variables = frozenset().union(*(meta.find_undeclared_variables(environment.parse(text)) for text in sources))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt of a conversation.

        Args:
            messages: as :func:`paddle_ds.text.normalise_messages` gives them.
            add_generation_prompt: end with what opens the assistant's turn.
            tools: function definitions offered to the model.
            continue_final_message: the last message is an assistant's and is left open, for the answer to go on with
                it; no generation prompt is added then.
            kwargs: further variables of the template, such as ``enable_thinking``.

        Raises:
            ChatTemplateError: the template refused the messages, failed, or used up its budget.
        """
        reserved = sorted(_RESERVED & kwargs.keys())
        if reserved:
            raise ChatTemplateError(f"template argument {reserved[0]!r} is set by the server", param="chat_template_kwargs")
        if continue_final_message:
            messages = _mark_final(messages)
        variables = {
            **self._special_tokens,
            **kwargs,
            "messages": messages,
            "tools": tools,
            "documents": kwargs.get("documents"),
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        template = self._tool_template if tools and self._tool_template is not None else self._template
        text = _render(template, variables)
        return _cut_at_mark(text) if continue_final_message else text


def read_chat_template(
    directory: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template of a checkpoint: chat_template.jinja, else chat_template.json, else tokenizer_config.json's.

    Raises:
        TokenizerError: a file is broken.
        ChatTemplateError: the template is.
    """
    jinja_path, json_path = directory / "chat_template.jinja", directory / "chat_template.json"
    entry: Any = tokenizer_config.get("chat_template")
    where = directory / "tokenizer_config.json"
    try:
        if jinja_path.is_file():
            where, entry = jinja_path, jinja_path.read_text(encoding="utf-8")
        elif json_path.is_file():
            where, entry = json_path, json.loads(json_path.read_text(encoding="utf-8"))
            entry = entry.get("chat_template") if isinstance(entry, dict) else entry
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{where}: not readable: {error}") from error
    if entry is None:
        return None
    named = {"default": entry} if isinstance(entry, str) else _named_templates(entry, where)
    if "default" not in named:
        raise TokenizerError(f"{where}: chat_template has no template named 'default'; has: {', '.join(named)}")
    return ChatTemplate(named["default"], special_tokens, named.get("tool_use"))


def _named_templates(entry: Any, where: Path) -> dict[str, str]:
    """``[{"name": "default", "template": "…"}, …]`` by name."""
    named: dict[str, str] = {}
    for item in entry if isinstance(entry, list) else [entry]:
        name, template = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            raise TokenizerError(f"{where}: chat_template must be a string or a list of objects with name and template")
        named[name] = template
    return named


def _compile(environment: TemplateSandbox, source: str) -> jinja2.Template:
    if len(source) > _MAX_SOURCE_CHARS:
        raise ChatTemplateError(f"the chat template has {len(source)} characters; the limit is {_MAX_SOURCE_CHARS}")
    try:
        return environment.from_string(source)
    except Exception as error:  # syntax errors, but also what a hostile source makes the compiler raise
        raise ChatTemplateError(f"the chat template does not compile: {_describe(error)}") from error


def _render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    parts: list[str] = []
    num_chars = 0
    try:
        with budget():
            for part in template.generate(variables):
                num_chars += len(part)
                if num_chars > MAX_OUTPUT_CHARS:
                    raise ChatTemplateError(f"the chat template writes more than {MAX_OUTPUT_CHARS} characters")
                parts.append(part)
    except ChatTemplateError:
        raise
    except jinja2.exceptions.SecurityError as error:
        raise ChatTemplateError(f"the chat template does something that is not allowed: {_describe(error)}") from error
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"the chat template refuses these messages: {_describe(error)}") from error
    except Exception as error:  # whatever an expression raises: the template or the messages are at fault
        raise ChatTemplateError(f"the chat template failed: {type(error).__name__}: {_describe(error)}") from error
    return "".join(parts)


def _describe(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 500 else text[:500] + "…"


def _mark_final(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = messages[-1] if messages else {}
    content = last.get("content")
    if last.get("role") != "assistant" or not isinstance(content, str):
        raise ChatTemplateError("continue_final_message needs a last message by the assistant, with text", param="messages")
    return [*messages[:-1], {**last, "content": content + _END_OF_FINAL}]


def _cut_at_mark(text: str) -> str:
    end = text.rfind(_END_OF_FINAL)
    if end < 0:
        raise ChatTemplateError("the chat template leaves out the message that is to be continued", param="messages")
    return text[:end]
