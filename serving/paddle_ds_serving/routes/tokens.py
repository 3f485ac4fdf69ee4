"""``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

from flask import Blueprint, Response

from paddle_ds_serving.logprobs import token_name
from paddle_ds_serving.prompts import chat_prompt, check_ids, refuse_far_too_long
from paddle_ds_serving.protocol import tokenize as wire
from paddle_ds_serving.routes.bodies import json_body
from paddle_ds_serving.service import current
from paddle_ds_serving.sse import json_response

blueprint = Blueprint("tokens", __name__)

#: texts of more than twice as many are refused; what a request may hold does not matter here
_LIMIT_TOKENS = 2**20


@blueprint.post("/tokenize")
def tokenize() -> Response:
    """Token ids of a text or a conversation, exactly as a request with it would be counted."""
    request = json_body(wire.TokenizeRequest)
    request.check()
    served = current().served(request.model)
    tokenizer = served.tokenizer
    if request.messages is not None:
        continues = bool(request.continue_final_message)
        opens = not continues if request.add_generation_prompt is None else request.add_generation_prompt
        prompt = chat_prompt(
            tokenizer,
            request.messages,
            opens_turn=opens,
            continues=continues,
            template_kwargs=request.chat_template_kwargs,
            limit_tokens=_LIMIT_TOKENS,
        )
        ids = prompt.ids
    else:
        refuse_far_too_long(tokenizer, request.prompt or "", _LIMIT_TOKENS, "prompt")
        ids = tokenizer.encode(request.prompt or "", add_special_tokens=request.add_special_tokens is not False)
    names = [token_name(tokenizer, token_id) for token_id in ids] if request.return_token_strs else None
    return json_response(wire.TokenizeResponse(len(ids), served.model.max_context_tokens, ids, names))


@blueprint.post("/detokenize")
def detokenize() -> Response:
    """The text of token ids."""
    request = json_body(wire.DetokenizeRequest)
    served = current().served(request.model)
    ids = check_ids(served.tokenizer, request.tokens, "tokens")
    return json_response(wire.DetokenizeResponse(served.tokenizer.decode(ids, skip_special_tokens=False)))
