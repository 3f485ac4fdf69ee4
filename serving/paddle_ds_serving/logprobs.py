"""Log probabilities in the two forms that OpenAI's APIs have for them."""

from __future__ import annotations

from collections.abc import Sequence

from paddle_ds.ipc.messages import TokenLogprob
from paddle_ds.text import Tokenizer
from paddle_ds_serving.protocol.chat import LogprobsBody, TokenLogprobBody, TopLogprob
from paddle_ds_serving.protocol.completions import CompletionLogprobs

#: JSON has no minus infinity; a token that was ruled out reports this instead, as OpenAI does
LOWEST_LOGPROB = -9999.0


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """The token's text; a token that is part of a character only is written as its bytes, ``bytes:\\xe4\\xbd``."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def for_chat(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> LogprobsBody:
    """Chat's form: an object a token, with its bytes."""
    content = []
    for entry in entries:
        top = [TopLogprob(*_token(tokenizer, token), _bytes(tokenizer, token[0])) for token in entry.top]
        token = _token(tokenizer, (entry.token_id, entry.logprob))
        content.append(TokenLogprobBody(*token, _bytes(tokenizer, entry.token_id), top))
    return LogprobsBody(content)


def for_completions(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], first_offset: int) -> CompletionLogprobs:
    """Completions' form: four lists. ``text_offset`` counts characters of the tokens before, from ``first_offset``."""
    tokens, offsets = [], []
    offset = first_offset
    for entry in entries:
        name = token_name(tokenizer, entry.token_id)
        tokens.append(name)
        offsets.append(offset)
        offset += num_characters(tokenizer, entry.token_id)
    top = [dict(_token(tokenizer, token) for token in (*entry.top, (entry.token_id, entry.logprob))) for entry in entries]
    return CompletionLogprobs(tokens, [max(entry.logprob, LOWEST_LOGPROB) for entry in entries], top, offsets)


def num_characters(tokenizer: Tokenizer, token_id: int) -> int:
    """Characters that begin in this token: continuation bytes of UTF-8 do not count."""
    return sum(1 for byte in tokenizer.token_bytes(token_id) if byte & 0xC0 != 0x80)


def _token(tokenizer: Tokenizer, token: tuple[int, float]) -> tuple[str, float]:
    token_id, logprob = token
    return token_name(tokenizer, token_id), max(logprob, LOWEST_LOGPROB)


def _bytes(tokenizer: Tokenizer, token_id: int) -> list[int]:
    return list(tokenizer.token_bytes(token_id))
