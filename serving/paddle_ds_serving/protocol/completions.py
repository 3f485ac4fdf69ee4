"""``POST /v1/completions``: the request, the response and the chunks of a stream."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from paddle_ds.errors import InvalidRequest, UnsupportedParameter
from paddle_ds_serving.protocol.fields import MAX_CHOICES, SamplingFields
from paddle_ds_serving.protocol.usage import UsageBody


class CompletionRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body. ``prompt`` is text, token ids, or a list of either."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None

    def check(self) -> None:
        """See :meth:`SamplingFields.check`."""
        super().check()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise UnsupportedParameter("best_of is not supported, except equal to n", param="best_of")
        if self.echo and self.logprobs is not None:
            raise UnsupportedParameter(
                "echo with logprobs is not supported: there are no log probabilities of prompt tokens", param="echo"
            )

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one.

        Raises:
            InvalidRequest: the list is empty or mixes kinds.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(item) for item in self.prompt}
        if kinds == {int}:
            return [[item for item in self.prompt if isinstance(item, int)]]
        if kinds not in ({str}, {list}):
            problem = "is empty" if not kinds else "mixes text and token ids"
            raise InvalidRequest(f"prompt {problem}; send text, token ids, or a list of either", param="prompt")
        prompts = [item for item in self.prompt if not isinstance(item, int)]
        if len(prompts) * (self.n or 1) > MAX_CHOICES:
            raise UnsupportedParameter(
                f"{len(prompts)} prompts with {self.n or 1} answers each; at most {MAX_CHOICES} answers a request",
                param="prompt",
            )
        return prompts


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """``logprobs`` of a choice: four lists of the same length, one entry a generated token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer, or what is new of it in a chunk (where ``finish_reason`` may be null)."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a whole answer, and of one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    weight_version: str | UnsetType = UNSET
    choices: list[CompletionChoice]
    usage: UsageBody | UnsetType | None = UNSET
