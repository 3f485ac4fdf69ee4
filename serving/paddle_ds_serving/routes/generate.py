"""``POST /generate``: one prompt in, one answer out, for programs that want no more than that."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response

from paddle_ds_serving.choice import Piece
from paddle_ds_serving.generation import Order
from paddle_ds_serving.prompts import Prompt, chat_prompt, check_length, text_prompt
from paddle_ds_serving.protocol import generate as wire
from paddle_ds_serving.protocol.refused import GENERATE
from paddle_ds_serving.protocol.usage import UsageBody
from paddle_ds_serving.routes.bodies import json_body
from paddle_ds_serving.sampling import generate_params
from paddle_ds_serving.service import Served, current, current_record
from paddle_ds_serving.sse import json_response, stream_response

blueprint = Blueprint("generate", __name__)


@blueprint.post("/generate")
def create() -> Response:
    """Answer one prompt."""
    service = current()
    request = json_body(wire.GenerateRequest, GENERATE)
    served = service.served(request.model)
    params = generate_params(request, served.defaults)
    prompt = _prompt(request, served)
    check_length([prompt], params, served.model.max_context_tokens, "prompt")
    order = Order(f"gen-{service.make_id()}", [prompt], params, "deepseek")
    generation = service.start(order, served)
    if request.stream:
        writer = _Writer(order.response_id, served)
        return stream_response(generation, writer, service.settings.sse_ping_s, current_record())
    try:
        generation.run()
    finally:
        generation.close()
    choice = generation.choices[0]
    assert choice.finish_reason is not None, "the generation was not run to its end"
    return json_response(
        wire.GenerateResponse(
            order.response_id,
            served.model.name,
            choice.content_text,
            choice.reasoning_text or None,
            choice.finish_reason,
            generation.usage(),
            served.weight_version,
        )
    )


def _prompt(request: wire.GenerateRequest, served: Served) -> Prompt:
    """One user turn; a model without a chat template gets the text itself."""
    if served.tokenizer.chat_template is None:
        return text_prompt(served.tokenizer, request.prompt, limit_tokens=served.model.max_context_tokens)
    messages = [{"role": "user", "content": request.prompt}]
    return chat_prompt(served.tokenizer, messages, limit_tokens=served.model.max_context_tokens, param="prompt")


class _Writer:
    """Writes the events of a stream."""

    def __init__(self, response_id: str, served: Served) -> None:
        self._id = response_id
        self._version = served.weight_version
        self._finish_reason: str | None = None

    def first(self) -> Iterator[wire.GenerateChunk]:
        """Nothing comes before the text."""
        return iter(())

    def piece(self, piece: Piece) -> Iterator[wire.GenerateChunk]:
        """New text; the end is told with the usage, in the last event."""
        self._finish_reason = piece.finish_reason
        if piece.reasoning or piece.content:
            yield wire.GenerateChunk(self._id, piece.content, piece.reasoning or None, weight_version=self._version)

    def last(self, usage: UsageBody) -> Iterator[wire.GenerateChunk]:
        """How it ended and what it cost."""
        yield wire.GenerateChunk(self._id, "", None, self._finish_reason, usage, self._version)
