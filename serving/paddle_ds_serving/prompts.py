"""From a request to prompts: token ids, and what is known of where they end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import ChatTemplateError, InvalidRequest, PromptTooLong, UnsupportedParameter
from paddle_ds.text import Tokenizer, normalise_messages, starts_inside_reasoning

#: template variables that a request cannot set with ``chat_template_kwargs``
_RESERVED = {
    "add_generation_prompt",
    "bos_token",
    "continue_final_message",
    "documents",
    "eos_token",
    "messages",
    "pad_token",
    "tools",
    "unk_token",
}


#: characters of which the tokens are counted at a time. Tokenizing takes more than a hundred times the memory of a text
_PART_CHARACTERS = 65_536


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt. ``text`` is known only where the request brought text."""

    ids: list[int]
    text: str | None = None
    #: the answer starts inside ``<think>``, because the template ended with the tag
    inside_reasoning: bool = False


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    opens_turn: bool = True,
    continues: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    limit_tokens: int | None = None,
    param: str = "messages",
) -> Prompt:
    """Render the messages with the model's template and tokenize the result.

    Raises:
        InvalidRequest, UnsupportedParameter: a message has a wrong or unknown field.
        PromptTooLong: they are far longer than ``limit_tokens``.
        ChatTemplateError: the model has no template, or the template refuses the messages.
    """
    template = tokenizer.chat_template
    if template is None:
        raise ChatTemplateError("this model has no chat template; use /v1/completions", param="messages")
    for name in template_kwargs or {}:
        if name in _RESERVED or name not in template.variables:
            problem = "is set by the server" if name in _RESERVED else "is not a variable of this model's chat template"
            param = f"chat_template_kwargs.{name}"
            raise UnsupportedParameter(f"{param} {problem}", param=param)
    text = template.render(
        normalise_messages(messages),
        add_generation_prompt=opens_turn,
        continue_final_message=continues,
        **(template_kwargs or {}),
    )
    refuse_far_too_long(tokenizer, text, limit_tokens, param)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return Prompt(ids, text, starts_inside_reasoning(text))


def text_prompt(
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    add_special_tokens: bool = True,
    limit_tokens: int | None = None,
) -> Prompt:
    """A prompt as it is: text, or token ids.

    Raises:
        InvalidRequest: it has no token, or an id that the tokenizer does not have.
        PromptTooLong: it is far longer than ``limit_tokens``.
    """
    if isinstance(prompt, str):
        refuse_far_too_long(tokenizer, prompt, limit_tokens, "prompt")
        ids = tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        text: str | None = prompt
    else:
        ids, text = check_ids(tokenizer, prompt, "prompt"), None
    if not ids:
        raise InvalidRequest("prompt is empty; the model needs at least one token to start from", param="prompt")
    return Prompt(ids, text)


def refuse_far_too_long(tokenizer: Tokenizer, text: str, limit_tokens: int | None, param: str) -> None:
    """Refuse a text of more than about twice ``limit_tokens``, without tokenizing all of it at once.

    The parts of a text have at most a few tokens more than the text itself, those at their borders. A text that may be long
    enough is counted in parts first; its tokens take a fraction of the time that their prefill does.

    Raises:
        PromptTooLong: it is.
    """
    if limit_tokens is None or len(text) <= 2 * limit_tokens:
        return
    num_tokens = 0
    for start in range(0, len(text), _PART_CHARACTERS):
        num_tokens += len(tokenizer.encode(text[start : start + _PART_CHARACTERS], add_special_tokens=False))
        if num_tokens > 2 * limit_tokens:
            problem = f"a text of {len(text)} characters has more than twice the {limit_tokens} tokens that are accepted here"
            raise PromptTooLong(f"{problem}; shorten it", param=param)


def check_ids(tokenizer: Tokenizer, ids: Sequence[int], param: str) -> list[int]:
    """The ids, if the tokenizer has them all."""
    limit = tokenizer.num_tokens
    for token_id in ids:
        if not 0 <= token_id < limit:
            raise InvalidRequest(f"{param} holds token {token_id}; the tokenizer has ids 0 to {limit - 1}", param=param)
    return list(ids)


def check_length(prompts: Sequence[Prompt], params: SamplingParams, limit_tokens: int, param: str) -> None:
    """Refuse what does not fit: a prompt is never cut.

    Raises:
        PromptTooLong: a prompt fills the context, or leaves less room than ``max_tokens`` asks for.
    """
    for prompt in prompts:
        wanted = max(params.max_tokens or 1, params.min_tokens)
        if len(prompt.ids) + wanted > limit_tokens:
            asked = params.max_tokens if params.max_tokens is not None else (params.min_tokens or None)
            error = PromptTooLong.of(len(prompt.ids), asked, limit_tokens)
            error.param = param
            raise error
