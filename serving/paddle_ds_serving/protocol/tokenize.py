"""``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

from typing import Any

import msgspec

from paddle_ds.errors import InvalidRequest


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        """Raises:
        InvalidRequest: both or neither of ``prompt`` and ``messages``, or a field of the other one.
        """
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("send either prompt or messages", param="prompt")
        of_chat = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
        for name in of_chat if self.messages is None else ("add_special_tokens",):
            if getattr(self, name) is not None:
                needed = "messages" if self.messages is None else "prompt"
                raise InvalidRequest(f"{name} is only allowed with {needed}", param=name)
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )


class TokenizeResponse(msgspec.Struct, frozen=True):
    """Token ids, and their texts where asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Token ids to turn into text."""

    tokens: list[int]
    model: str | None = None


class DetokenizeResponse(msgspec.Struct, frozen=True):
    """The text, special tokens included."""

    prompt: str
