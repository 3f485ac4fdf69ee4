"""Fields that several APIs share."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from paddle_ds.errors import InvalidRequest, UnsupportedParameter

#: most answers of one HTTP request, over all its prompts
MAX_CHOICES = 128


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``stream_options``: what a stream carries beside the answer."""

    include_usage: bool | None = None
    #: OpenAI's padding against traffic analysis: not available, so only ``false``
    include_obfuscation: bool | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What chat and text completions share. ``None`` is the same as leaving a field out."""

    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Harmless by meaning: they tell a provider who asks, and change nothing of the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Rules that span fields.

        Raises:
            InvalidRequest: fields contradict each other.
            UnsupportedParameter: a value asks for something there is not.
        """
        if self.stream_options is not None:
            if not self.stream:
                raise InvalidRequest("stream_options is only allowed with stream: true", param="stream_options")
            if self.stream_options.include_obfuscation:
                raise UnsupportedParameter(
                    "stream_options.include_obfuscation is not supported", param="stream_options.include_obfuscation"
                )
        if self.n is not None and self.n > MAX_CHOICES:
            raise UnsupportedParameter(f"n is {self.n}; at most {MAX_CHOICES} answers a request", param="n")
