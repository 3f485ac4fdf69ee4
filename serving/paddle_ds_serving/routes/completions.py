"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response
from msgspec import UNSET, UnsetType

from paddle_ds_serving.choice import Piece
from paddle_ds_serving.generation import Generation, Order
from paddle_ds_serving.logprobs import for_completions, num_characters
from paddle_ds_serving.prompts import Prompt, check_length, text_prompt
from paddle_ds_serving.protocol import completions as wire
from paddle_ds_serving.protocol.refused import COMPLETIONS
from paddle_ds_serving.protocol.usage import UsageBody
from paddle_ds_serving.routes.bodies import json_body
from paddle_ds_serving.sampling import completion_params
from paddle_ds_serving.service import Served, current, current_record
from paddle_ds_serving.sse import json_response, stream_response

blueprint = Blueprint("completions", __name__)


@blueprint.post("/v1/completions")
def create() -> Response:
    """Continue one text or several."""
    service = current()
    request = json_body(wire.CompletionRequest, COMPLETIONS)
    request.check()
    served = service.served(request.model)
    params = completion_params(request, served.defaults, served.tokenizer.num_tokens)
    adds_special = request.add_special_tokens is not False
    limit_tokens = served.model.max_context_tokens
    prompts = [
        text_prompt(served.tokenizer, prompt, add_special_tokens=adds_special, limit_tokens=limit_tokens)
        for prompt in request.prompts()
    ]
    check_length(prompts, params, limit_tokens, "prompt")
    order = Order(f"cmpl-{service.make_id()}", prompts, params, None)
    generation = service.start(order, served)
    writer = _Writer(request, order, served, service.unix_s())
    if request.stream:
        return stream_response(generation, writer, service.settings.sse_ping_s, current_record())
    try:
        generation.run()
    finally:
        generation.close()
    return json_response(writer.whole(generation))


class _Writer:
    """Writes answers as text completions, whole or in chunks. Answers to prompt 0 come first, then those to prompt 1."""

    def __init__(self, request: wire.CompletionRequest, order: Order, served: Served, created: int) -> None:
        self._request = request
        self._order = order
        self._served = served
        self._created = created
        self._usage: UnsetType | None = None if request.include_usage else UNSET
        self._offsets = [0] * (len(order.prompts) * order.params.n)

    def first(self) -> Iterator[wire.CompletionResponse]:
        """The prompts, where they are to be echoed or their ids told."""
        for index in range(len(self._offsets)):
            prompt = self._prompt(index)
            ids = prompt.ids if self._request.return_token_ids else UNSET
            if self._request.echo or ids is not UNSET:
                yield self._body([wire.CompletionChoice(index, self._echoed(prompt), prompt_token_ids=ids)])

    def piece(self, piece: Piece) -> Iterator[wire.CompletionResponse]:
        """New text, with the reason of the end in the same chunk."""
        ids = piece.token_ids if self._request.return_token_ids else UNSET
        logprobs = self._logprobs(piece) if piece.logprobs else None
        yield self._body([wire.CompletionChoice(piece.index, piece.content, logprobs, piece.finish_reason, ids)])

    def last(self, usage: UsageBody) -> Iterator[wire.CompletionResponse]:
        """The usage, where it was asked for."""
        if self._request.include_usage:
            yield self._body([], usage)

    def whole(self, generation: Generation) -> wire.CompletionResponse:
        """The body of an answer that is not streamed."""
        choices = []
        for choice in generation.choices:
            tells_ids = self._request.return_token_ids
            wants_logprobs = self._request.logprobs is not None
            choices.append(
                wire.CompletionChoice(
                    choice.index,
                    self._echoed(choice.prompt) + choice.content_text,
                    for_completions(self._served.tokenizer, choice.logprobs, 0) if wants_logprobs else None,
                    choice.finish_reason,
                    choice.token_ids if tells_ids else UNSET,
                    choice.prompt.ids if tells_ids else UNSET,
                )
            )
        return self._body(choices, generation.usage())

    def _prompt(self, index: int) -> Prompt:
        return self._order.prompts[index // self._order.params.n]

    def _echoed(self, prompt: Prompt) -> str:
        if not self._request.echo:
            return ""
        if prompt.text is not None:
            return prompt.text
        return self._served.tokenizer.decode(prompt.ids, skip_special_tokens=self._order.params.skip_special_tokens)

    def _logprobs(self, piece: Piece) -> wire.CompletionLogprobs:
        tokenizer, first = self._served.tokenizer, self._offsets[piece.index]
        self._offsets[piece.index] += sum(num_characters(tokenizer, entry.token_id) for entry in piece.logprobs)
        return for_completions(tokenizer, piece.logprobs, first)

    def _body(self, choices: list[wire.CompletionChoice], usage: UsageBody | None = None) -> wire.CompletionResponse:
        return wire.CompletionResponse(
            id=self._order.response_id,
            created=self._created,
            model=self._served.model.name,
            system_fingerprint=self._served.fingerprint,
            weight_version=self._served.weight_version,
            choices=choices,
            usage=self._usage if usage is None else usage,
        )
