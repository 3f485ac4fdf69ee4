"""``usage``: what a request cost, in tokens."""

from __future__ import annotations

import msgspec


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Part of the prompt that was found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """Part of the answer that was reasoning."""

    reasoning_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """A prompt counts once, however many answers were asked for."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails

    @classmethod
    def of(cls, prompt: int, completion: int, *, cached: int, reasoning: int) -> UsageBody:
        """Build the record from four counts."""
        return cls(prompt, completion, prompt + completion, PromptTokensDetails(cached), CompletionTokensDetails(reasoning))
