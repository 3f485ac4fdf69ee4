"""Fields that OpenAI or other servers know and that this server refuses, each with its reason.

An accepted parameter that does nothing is worse than an error, so a field is either honoured, harmless by its meaning
(``user`` and the like, see :mod:`.fields`), or listed here. Values in ``harmless`` ask for what happens anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddle_ds_serving.protocol.body import Refused


def one_of(*values: Any) -> Callable[[Any], bool]:
    """A test for ``null`` and the given values; ``0`` does not pass for ``false``."""
    return lambda value: value is None or any(type(value) is type(allowed) and value == allowed for allowed in values)


_GUIDED = Refused("constrained decoding is not available here; validate the answer in your program")
_BEAM = Refused("beam search is not available here; ask for several answers with n", one_of(False))
_STORE = Refused("answers are not stored; send store: false or leave it out", one_of(False))

#: refused in /v1/chat/completions and /v1/completions
COMMON: dict[str, Refused] = {
    "bad_words": Refused("use logit_bias with the token ids"),
    "cache_salt": Refused("the prefix cache cannot be divided by caller"),
    "detailed_metrics": Refused("see GET /metrics", one_of(False)),
    "early_stopping": _BEAM,
    "grammar": _GUIDED,
    "guided_choice": _GUIDED,
    "guided_decoding_backend": _GUIDED,
    "guided_grammar": _GUIDED,
    "guided_json": _GUIDED,
    "guided_regex": _GUIDED,
    "guided_whitespace_pattern": _GUIDED,
    "json_schema": _GUIDED,
    "length_penalty": Refused("beam search is not available here", one_of(1, 1.0)),
    "logits_processors": Refused("code is never accepted from a request"),
    "lora_path": Refused("adapters are not available here"),
    "priority": Refused("requests are served in the order of arrival", one_of(0)),
    "prompt_logprobs": Refused("log probabilities are reported for generated tokens only"),
    "response_format": Refused('only {"type": "text"} is available', one_of({"type": "text"})),
    "spaces_between_special_tokens": Refused("text is decoded as the tokenizer says", one_of(True)),
    "store": _STORE,
    "structured_outputs": _GUIDED,
    "truncate_prompt_tokens": Refused("a prompt is never cut; shorten it in your program"),
    "use_beam_search": _BEAM,
}

#: refused in /v1/chat/completions
CHAT: dict[str, Refused] = {
    **COMMON,
    "add_special_tokens": Refused("the chat template says which special tokens there are", one_of(False)),
    "audio": Refused("this model reads and writes text only"),
    "best_of": Refused("ask for several answers with n", one_of(1)),
    "chat_template": Refused("templates come from the checkpoint; pass values with chat_template_kwargs"),
    "documents": Refused("put the documents into a message"),
    "echo": Refused("use /v1/completions", one_of(False)),
    "enable_thinking": Refused("pass it in chat_template_kwargs, where the model's template knows it"),
    "function_call": Refused("tool calls are not available for this model", one_of("none")),
    "functions": Refused("tool calls are not available for this model", one_of([])),
    "include_reasoning": Refused("use reasoning_format", one_of(True)),
    "mm_processor_kwargs": Refused("this model reads text only"),
    "modalities": Refused("this model writes text only", one_of(["text"])),
    "prediction": Refused("predicted outputs are not available here"),
    "reasoning_effort": Refused("R1 distilled models have no effort levels; bound the answer with max_tokens"),
    "separate_reasoning": Refused("use reasoning_format", one_of(True)),
    "suffix": Refused("the model was not trained to fill gaps", one_of("")),
    "verbosity": Refused("R1 distilled models have no verbosity levels", one_of("medium")),
    "web_search_options": Refused("the server does not search the web"),
}

_CHAT_ONLY = Refused("it belongs to /v1/chat/completions")

#: refused in /v1/completions
COMPLETIONS: dict[str, Refused] = {
    **COMMON,
    "add_generation_prompt": _CHAT_ONLY,
    "chat_template_kwargs": _CHAT_ONLY,
    "continue_final_message": _CHAT_ONLY,
    "max_completion_tokens": Refused("use max_tokens"),
    "messages": _CHAT_ONLY,
    "prompt_embeds": Refused("send text or token ids"),
    "reasoning_format": Refused("the text of a completion is never split; use /v1/chat/completions"),
    "suffix": Refused("the model was not trained to fill gaps", one_of("")),
    "tools": _CHAT_ONLY,
    "top_logprobs": Refused("logprobs is a number here: how many alternatives to report"),
}

#: refused in /generate
GENERATE: dict[str, Refused] = {
    "decode_strategy": Refused("temperature 0 is greedy search, above it is sampling", one_of("sampling")),
    "max_tokens": Refused("use max_length"),
    "messages": Refused("use /v1/chat/completions"),
    "min_length": Refused("use /v1/completions with min_tokens", one_of(0, 1)),
    "n": Refused("use /v1/completions", one_of(1)),
    "num_beams": Refused("beam search is not available here", one_of(1)),
    "num_return_sequences": Refused("use /v1/completions with n", one_of(1)),
}
