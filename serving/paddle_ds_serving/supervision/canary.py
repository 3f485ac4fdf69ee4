"""The canary: a short greedy answer that shows whether an engine still computes, and computes something."""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import CanaryError, EngineError, EngineUnavailable, PaddleDSError, ServerOverloaded, from_info
from paddle_ds.ipc.messages import Delta, Failed, ModelInfo, Submit
from paddle_ds.text import Tokenizer
from paddle_ds_serving.engine import EngineClient
from paddle_ds_serving.prompts import chat_prompt, text_prompt

#: a model that prefers its choices by less than this over any other token, in nats on average, has learnt nothing
_LEAST_PREFERENCE = 0.5
_POLL_S = 0.25


@dataclasses.dataclass(frozen=True)
class CanaryConfig:
    """What is asked and expected."""

    prompt: str
    #: text that the answer (reasoning included) must contain; ``None``: any text will do
    expect: str | None
    #: how long an engine may make no step at all
    timeout_s: float = 60.0

    @property
    def max_tokens(self) -> int:
        return 16 if self.expect is None else 256


@dataclasses.dataclass(frozen=True)
class Canary:
    """One model's canary: its prompt as token ids."""

    config: CanaryConfig
    model: ModelInfo
    prompt_ids: Sequence[int]
    tokenizer: Tokenizer | None

    @classmethod
    def of(cls, config: CanaryConfig, model: ModelInfo) -> Canary:
        """Raises :class:`TokenizerError` or :class:`ChatTemplateError` where the model's files do not allow a prompt."""
        tokenizer = Tokenizer.from_dir(Path(model.directory))
        if tokenizer.chat_template is None:
            ids = text_prompt(tokenizer, config.prompt).ids
        else:
            ids = chat_prompt(tokenizer, [{"role": "user", "content": config.prompt}]).ids
        # kept only where the answer must be read: a large vocabulary takes 85 MiB
        return cls(config, model, ids, tokenizer if config.expect is not None else None)

    def sing(self, engine: EngineClient) -> None:
        """Ask once. An engine that is too busy to take the request is alive, and that is all that is asked of it then.

        Raises:
            CanaryError: it answered, and not as it should.
            EngineError: it is gone, failed, or stands still.
        """
        room = max(1, self.model.max_context_tokens - len(self.prompt_ids))
        params = SamplingParams(temperature=0, max_tokens=min(self.config.max_tokens, room), logprobs=0)
        request = Submit(f"canary-{secrets.token_hex(8)}", list(self.prompt_ids), params)
        try:
            ids, logprobs = self._follow(engine, request)
        except ServerOverloaded:
            return
        self._judge(ids, logprobs)

    def _follow(self, engine: EngineClient, request: Submit) -> tuple[list[int], list[float]]:
        stream = engine.submit([request])
        ids: list[int] = []
        logprobs: list[float] = []
        steps, moved_s = -1, time.monotonic()
        while True:
            event = stream.get(_POLL_S)
            steps_now = engine.stats.steps_total if engine.stats else -1
            if event is not None or steps_now != steps:
                steps, moved_s = steps_now, time.monotonic()
            elif time.monotonic() - moved_s > self.config.timeout_s:
                stream.abort()
                raise EngineUnavailable(f"no step within {self.config.timeout_s:g} s, although a request waits")
            if isinstance(event, Delta):
                ids += event.token_ids
                logprobs += [entry.logprob for entry in event.logprobs or ()]
            elif isinstance(event, Failed):
                raise _as_engine_error(from_info(event.error))
            elif event is not None:
                return ids, logprobs

    def _judge(self, ids: list[int], logprobs: list[float]) -> None:
        if not ids:
            raise CanaryError(f"the canary {self.config.prompt!r} got no answer")
        if not all(math.isfinite(value) for value in logprobs):
            raise CanaryError("the canary's log probabilities are not finite")
        mean = sum(logprobs) / max(1, len(logprobs))
        if logprobs and mean < _LEAST_PREFERENCE - math.log(self.model.vocab_size):
            raise CanaryError(
                f"the model prefers no token over another (mean log probability {mean:.2f} of {self.model.vocab_size} tokens)"
            )
        if self.tokenizer is not None and self.config.expect is not None:
            text = self.tokenizer.decode(ids)
            if self.config.expect not in text:
                expected = f"the canary {self.config.prompt!r} expects {self.config.expect!r}"
                raise CanaryError(f"{expected}; the answer was {text[:200]!r}")


def _as_engine_error(error: PaddleDSError) -> PaddleDSError:
    """What a failed request says of its engine: everything but an engine's own words is a wrong canary."""
    return error if isinstance(error, EngineError) else CanaryError(f"the canary failed: {error.message}")
