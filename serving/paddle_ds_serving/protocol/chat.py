"""``POST /v1/chat/completions``: the request, the response and the chunks of a stream."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from paddle_ds.errors import InvalidRequest, UnsupportedParameter
from paddle_ds_serving.protocol.fields import SamplingFields
from paddle_ds_serving.protocol.usage import UsageBody

ReasoningFormat = Literal["none", "deepseek", "deepseek-legacy"]


class ChatRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body. Extensions that OpenAI does not have are listed last."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_format: ReasoningFormat | None = None
    mirror_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def check(self) -> None:
        """See :meth:`SamplingFields.check`."""
        super().check()
        if not self.messages:
            raise InvalidRequest("messages is empty; send at least one message", param="messages")
        if self.tools and self.tool_choice != "none":
            raise UnsupportedParameter("tools are not supported, except with tool_choice: none", param="tools")
        if self.tool_choice not in (None, "none"):
            raise UnsupportedParameter("tool_choice is not supported, except none", param="tool_choice")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )

    @property
    def opens_turn(self) -> bool:
        """Whether the prompt ends with the marker that opens the assistant's turn."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt


class TopLogprob(msgspec.Struct, frozen=True):
    """One alternative at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobBody(msgspec.Struct, frozen=True):
    """The generated token at a position, and the most probable ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class LogprobsBody(msgspec.Struct, frozen=True):
    """``logprobs`` of a choice: one entry a generated token, reasoning included."""

    content: list[TokenLogprobBody]


class Message(msgspec.Struct, frozen=True):
    """The answer. ``reasoning_content`` is absent with ``reasoning_format: none``."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET


class Choice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: Message
    logprobs: LogprobsBody | None
    finish_reason: str
    token_ids: list[int] | UnsetType = UNSET


class ChatResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody
    system_fingerprint: str
    weight_version: str | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class DeltaBody(msgspec.Struct, frozen=True):
    """What is new since the last chunk of this choice."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """One choice in a chunk."""

    index: int
    delta: DeltaBody
    logprobs: LogprobsBody | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream. ``usage`` is present in every chunk where the request asked for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    weight_version: str | UnsetType = UNSET
    choices: list[ChunkChoice]
    usage: UsageBody | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
