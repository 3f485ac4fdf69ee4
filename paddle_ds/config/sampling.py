"""What one request asks of the sampler: travels with the request, never changes."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import msgspec

from paddle_ds.errors import InvalidRequest

#: most alternatives a request may ask for beside each sampled token
MAX_TOP_LOGPROBS = 20
_MAX_SEED = 2**63 - 1


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen and when generation ends.

    Attributes:
        n: how many independent answers.
        max_tokens: most new tokens; ``None`` means up to the end of the context.
        min_tokens: end-of-text, stop ids and stop strings are held back until so many tokens exist.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens whose probability reaches it (1 keeps all).
        top_k: keep the k most probable tokens (0 keeps all).
        min_p: drop tokens less probable than ``min_p`` times the most probable one.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or answer (arXiv 1909.05858).
        presence_penalty: subtracted once from logits of tokens seen in the answer.
        frequency_penalty: subtracted per occurrence from logits of tokens seen in the answer.
        logit_bias: added to the logits of the given token ids.
        seed: same seed and same request give the same tokens, whatever else runs; ``None`` picks one.
        stop: strings that end the answer; they are not part of it unless ``include_stop_str_in_output``.
        stop_token_ids: ids that end the answer.
        ignore_eos: the model's own end-of-text ids do not end the answer.
        logprobs: ``None`` for none, else how many alternatives to report beside each sampled token's log probability.
        skip_special_tokens: leave tokens marked special out of the text.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for check in _CHECKS:
            value = getattr(self, check.name)
            if value is None and check.optional:
                continue
            if not check.accepts(value):
                raise InvalidRequest(f"{check.name} is {_shown(value)}; expected {check.expected}", param=check.name)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(f"{name} is {_shown(getattr(self, name))}; expected true or false", param=name)
        self._check_collections()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}", param="min_tokens")

    def _check_collections(self) -> None:
        if not _holds(self.stop, str):  # a lone string would be taken for the list of its characters
            raise InvalidRequest(f"stop is {_shown(self.stop)}; expected a list of strings", param="stop")
        if any(not text for text in self.stop):
            raise InvalidRequest("stop holds an empty string; every stop string needs a character", param="stop")
        if not _holds(self.stop_token_ids, int):
            raise InvalidRequest(f"stop_token_ids is {_shown(self.stop_token_ids)}; expected ids", param="stop_token_ids")
        if self.logit_bias is not None and not (isinstance(self.logit_bias, dict) and _holds([*self.logit_bias], int)):
            raise InvalidRequest(f"logit_bias is {_shown(self.logit_bias)}; expected ids and numbers", param="logit_bias")
        for token, bias in (self.logit_bias or {}).items():
            if not _BIAS.accepts(bias):
                raise InvalidRequest(f"logit_bias of token {token} is {_shown(bias)}; expected -100 to 100", param="logit_bias")

    def each_choice(self) -> list[SamplingParams]:
        """``n`` requests for one answer each; a given seed is turned into a seed of its own per answer.

        Answer 0 keeps the seed, so that ``n=1`` and the first of ``n=4`` are the same text.
        """
        if self.n == 1:
            return [self]
        seeds = [None if self.seed is None else derive_seed(self.seed, index) for index in range(self.n)]
        return [msgspec.structs.replace(self, n=1, seed=seed) for seed in seeds]


def derive_seed(seed: int, index: int) -> int:
    """A seed for the ``index``-th answer of a request; index 0 returns ``seed`` itself."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & _MAX_SEED


@dataclasses.dataclass(frozen=True)
class _Check:
    name: str
    low: float
    high: float
    expected: str
    whole: bool = False
    optional: bool = False
    open_low: bool = False

    def accepts(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not -math.inf < value < math.inf:  # not math.isfinite(), which gives up on long integers
            return False
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high


def _holds(values: Any, kind: type) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _shown(value: Any) -> str:
    """``repr`` for a message; Python refuses to write integers of thousands of digits, and nobody would read them."""
    return "a very long number" if isinstance(value, int) and value.bit_length() > 256 else repr(value)


_BIAS = _Check("logit_bias", -100, 100, "a number from -100 to 100")
_CHECKS = (
    _Check("n", 1, 128, "a whole number from 1 to 128", whole=True),
    _Check("max_tokens", 1, 2**31, "a whole number of at least 1", whole=True, optional=True),
    _Check("min_tokens", 0, 2**31, "a whole number of at least 0", whole=True),
    _Check("temperature", 0, 2, "a number from 0 to 2"),
    _Check("top_p", 0, 1, "a number above 0, at most 1", open_low=True),
    _Check("top_k", 0, 2**31, "a whole number of at least 0 (0 keeps all)", whole=True),
    _Check("min_p", 0, 1, "a number from 0 to 1"),
    _Check("repetition_penalty", 0.01, 10, "a number from 0.01 to 10"),
    _Check("presence_penalty", -2, 2, "a number from -2 to 2"),
    _Check("frequency_penalty", -2, 2, "a number from -2 to 2"),
    _Check("seed", -(2**63), _MAX_SEED, "a whole number of 64 bits", whole=True, optional=True),
    _Check("logprobs", 0, MAX_TOP_LOGPROBS, f"a whole number from 0 to {MAX_TOP_LOGPROBS}", whole=True, optional=True),
)
