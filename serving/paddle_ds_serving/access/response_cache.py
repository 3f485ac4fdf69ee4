"""Answers to deterministic requests, kept for the next time the same is asked.

    service ── submit ──▶ CachedEngine ── not kept ──▶ engine
                              │  kept                     │ tokens, recorded on their way
                              ▼                           ▼
                          replayed tokens ──────────▶ the same path: stop strings, filters, streams, usage

What is kept is what the engine said, tokens and end, and not text. So a replay takes the way of every answer, and whole and
streamed requests share it. Only answers that the engine ended are kept, not those that a stop string cut here. The key is a hash
of the weights, of all else that changes tokens, of the prompt's ids and of who asks: no client can find out what another asked.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
from flask import g

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.ipc.messages import Delta, EngineInfo, Finished, FinishReason, Stats, Submit, TokenLogprob, Usage
from paddle_ds.logs import fields
from paddle_ds_serving.access.access_metrics import AccessMetrics
from paddle_ds_serving.access.answer_store import MAX_ANSWER_BYTES, AnswerStore
from paddle_ds_serving.engine import EngineClient, Event, TokenStream

if TYPE_CHECKING:
    from paddle_ds_serving.service import Served

_log = logging.getLogger(__name__)
#: changes with the layout of what is kept
_LAYOUT = "1"


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What the engine said."""

    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    stop_token_id: int | None


_encode = msgspec.msgpack.encode
_decoder = msgspec.msgpack.Decoder(Answer)


def weights_of(served: Served) -> str:
    """What answers, besides parameters and prompt. Weights without a version are those of one start of one engine."""
    model = served.model
    info = served.engine.info
    version = model.weight_version or (info.boot_id if info is not None else "")
    return repr((served.fingerprint, version, model.kv_dtype, model.kv_scales, model.device, model.max_context_tokens))


def is_deterministic(params: SamplingParams) -> bool:
    """Whether the same request gives the same tokens again."""
    return params.temperature == 0 or params.seed is not None


class CachedEngine:
    """An engine's client with a memory. Everything but :meth:`submit` is the engine's own."""

    def __init__(self, engine: EngineClient, weights: str, store: AnswerStore, metrics: AccessMetrics) -> None:
        self._engine = engine
        self._weights = weights
        self._store = store
        self._metrics = metrics

    @property
    def info(self) -> EngineInfo | None:
        return self._engine.info

    @property
    def stats(self) -> Stats | None:
        return self._engine.stats

    @property
    def connected(self) -> bool:
        return self._engine.connected

    def close(self) -> None:
        self._engine.close()

    def submit(self, requests: Sequence[Submit]) -> TokenStream:
        """Answer from memory, or have the engine answer and remember it: a single deterministic request only."""
        if len(requests) != 1 or not is_deterministic(requests[0].params):
            return self._engine.submit(requests)
        request = requests[0]
        key = self._key(request)
        answer = self._find(key)
        self._metrics.cache_queries.inc()
        g.x_cache = "miss" if answer is None else "hit"
        if answer is None:
            return _Recording(self._engine.submit(requests), key, request, self._store)
        self._metrics.cache_hits.inc()
        return _Replay(request.request_id, answer)

    def _key(self, request: Submit) -> str:
        asks = g.principal.id if g.principal is not None else ""
        body = _encode((_LAYOUT, self._weights, asks, request.params, request.prompt_ids))
        return hashlib.sha256(body).hexdigest()

    def _find(self, key: str) -> Answer | None:
        kept = self._store.get(key)
        if kept is None:
            return None
        try:
            return _decoder.decode(kept)
        except msgspec.DecodeError as error:
            _log.warning("response_cache.damaged", extra=fields(error=str(error)))
            return None


class _Recording:
    """The engine's stream, written down while it is read, and kept if it ends well."""

    def __init__(self, stream: TokenStream, key: str, request: Submit, store: AnswerStore) -> None:
        self._stream = stream
        self._key = key
        self._request = request
        self._store = store
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._done = False

    def get(self, timeout_s: float | None = None) -> Event | None:
        event = self._stream.get(timeout_s)
        if self._done:
            return event
        if isinstance(event, Delta):
            self._token_ids.extend(event.token_ids)
            self._logprobs.extend(event.logprobs or [])
        elif event is not None:
            self._done = True
            if isinstance(event, Finished) and event.reason in ("stop", "length"):
                self._keep(event)
        return event

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        """What did not run to its own end is not kept."""
        self._done = True
        self._stream.abort(request_ids)

    def _keep(self, end: Finished) -> None:
        logprobs = self._logprobs if self._request.params.logprobs is not None else None
        usage = end.usage
        counts = (usage.num_prompt_tokens, usage.num_output_tokens, usage.num_cached_tokens)
        value = _encode(Answer(self._token_ids, logprobs, end.reason, *counts, end.stop_token_id))
        if len(value) <= MAX_ANSWER_BYTES:
            self._store.put(self._key, value)


class _Replay:
    """A kept answer as a stream. Its times are zero: nothing waited, nothing was computed."""

    def __init__(self, request_id: str, answer: Answer) -> None:
        usage = Usage(answer.num_prompt_tokens, answer.num_output_tokens, answer.num_cached_tokens)
        end = Finished(request_id, answer.reason, usage, answer.stop_token_id)
        self._events: list[Event] = [Delta(request_id, answer.token_ids, answer.logprobs), end]
        if not answer.token_ids:
            del self._events[0]

    def get(self, timeout_s: float | None = None) -> Event | None:
        return self._events.pop(0) if self._events else None

    def abort(self, request_ids: Iterable[str] | None = None) -> None:
        """There is nothing to end."""
