"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response
from msgspec import UNSET, UnsetType

from paddle_ds_serving.choice import Choice, Piece
from paddle_ds_serving.generation import Generation, Order
from paddle_ds_serving.logprobs import for_chat
from paddle_ds_serving.prompts import chat_prompt, check_length
from paddle_ds_serving.protocol import chat as wire
from paddle_ds_serving.protocol.refused import CHAT
from paddle_ds_serving.protocol.usage import UsageBody
from paddle_ds_serving.routes.bodies import json_body
from paddle_ds_serving.sampling import chat_params
from paddle_ds_serving.service import Served, current, current_record
from paddle_ds_serving.sse import json_response, stream_response

blueprint = Blueprint("chat", __name__)


@blueprint.post("/v1/chat/completions")
def create() -> Response:
    """Answer a conversation."""
    service = current()
    request = json_body(wire.ChatRequest, CHAT)
    request.check()
    served = service.served(request.model)
    params = chat_params(request, served.defaults, served.tokenizer.num_tokens)
    prompt = chat_prompt(
        served.tokenizer,
        request.messages,
        opens_turn=request.opens_turn,
        continues=bool(request.continue_final_message),
        template_kwargs=request.chat_template_kwargs,
        limit_tokens=served.model.max_context_tokens,
    )
    check_length([prompt], params, served.model.max_context_tokens, "messages")
    order = Order(f"chatcmpl-{service.make_id()}", [prompt], params, request.reasoning_format or "deepseek")
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
    """Writes answers as chat completions, whole or in chunks."""

    def __init__(self, request: wire.ChatRequest, order: Order, served: Served, created: int) -> None:
        self._request = request
        self._order = order
        self._served = served
        self._created = created
        self._splits = order.reasoning_format != "none"
        self._usage: UnsetType | None = None if request.include_usage else UNSET

    def first(self) -> Iterator[wire.ChatChunk]:
        """Each choice opens with its role."""
        for index in range(self._order.params.n):
            ids = self._order.prompts[0].ids if self._request.return_token_ids and index == 0 else UNSET
            yield self._chunk([wire.ChunkChoice(index, wire.DeltaBody("assistant", ""))], prompt_token_ids=ids)

    def piece(self, piece: Piece) -> Iterator[wire.ChatChunk]:
        """Reasoning and content go into chunks of their own; tokens are told with the first of them."""
        deltas = []
        if piece.reasoning:
            mirror = piece.reasoning if self._request.mirror_reasoning else UNSET
            deltas.append(wire.DeltaBody(reasoning_content=piece.reasoning, reasoning=mirror))
        if piece.content or (not deltas and piece.token_ids and self._tells_tokens):
            deltas.append(wire.DeltaBody(content=piece.content))
        for number, delta in enumerate(deltas):
            logprobs = self._logprobs(piece) if number == 0 else None
            ids = piece.token_ids if self._request.return_token_ids and number == 0 else UNSET
            yield self._chunk([wire.ChunkChoice(piece.index, delta, logprobs, None, ids)])
        if piece.finish_reason is not None:
            yield self._chunk([wire.ChunkChoice(piece.index, wire.DeltaBody(), None, piece.finish_reason)])

    def last(self, usage: UsageBody) -> Iterator[wire.ChatChunk]:
        """The usage, where it was asked for."""
        if self._request.include_usage:
            yield self._chunk([], usage=usage)

    def whole(self, generation: Generation) -> wire.ChatResponse:
        """The body of an answer that is not streamed."""
        return wire.ChatResponse(
            id=self._order.response_id,
            created=self._created,
            model=self._served.model.name,
            choices=[self._choice(choice) for choice in generation.choices],
            usage=generation.usage(),
            system_fingerprint=self._served.fingerprint,
            weight_version=self._served.weight_version,
            prompt_token_ids=self._order.prompts[0].ids if self._request.return_token_ids else UNSET,
        )

    def _choice(self, choice: Choice) -> wire.Choice:
        assert choice.finish_reason is not None, "the generation was not run to its end"
        reasoning = choice.reasoning_text or None
        content = choice.content_text
        message = wire.Message(
            "assistant",
            None if reasoning and not content else content,
            reasoning if self._splits else UNSET,
            reasoning if self._splits and self._request.mirror_reasoning else UNSET,
        )
        logprobs = for_chat(self._served.tokenizer, choice.logprobs) if self._request.logprobs else None
        ids = choice.token_ids if self._request.return_token_ids else UNSET
        return wire.Choice(choice.index, message, logprobs, choice.finish_reason, ids)

    @property
    def _tells_tokens(self) -> bool:
        return bool(self._request.logprobs or self._request.return_token_ids)

    def _logprobs(self, piece: Piece) -> wire.LogprobsBody | None:
        return for_chat(self._served.tokenizer, piece.logprobs) if self._request.logprobs else None

    def _chunk(
        self,
        choices: list[wire.ChunkChoice],
        *,
        usage: UsageBody | None = None,
        prompt_token_ids: list[int] | UnsetType = UNSET,
    ) -> wire.ChatChunk:
        return wire.ChatChunk(
            id=self._order.response_id,
            created=self._created,
            model=self._served.model.name,
            system_fingerprint=self._served.fingerprint,
            weight_version=self._served.weight_version,
            choices=choices,
            usage=self._usage if usage is None else usage,
            prompt_token_ids=prompt_token_ids,
        )
