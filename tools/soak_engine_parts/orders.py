"""What clients ask for: prompts with common beginnings, all kinds of sampling, bursts and pauses, and what must be refused."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.engine.core import Limits
from paddle_ds.errors import InvalidRequest, PaddleDSError, PromptTooLong

#: where a request stands when its client leaves
Moment = Literal["waiting", "prefilling", "decoding"]
MOMENTS: tuple[Moment, ...] = ("waiting", "prefilling", "decoding")

#: new requests a step, from a trickle to more than the engine can take, and for how many steps at most
_RATES = ((0.02, 200), (0.1, 300), (0.2, 300), (0.4, 200), (3.0, 30))
_NUM_BEGINNINGS = 12
_NUM_CONVERSATIONS = 8
_SHARE_REFUSED = 0.05
_SHARE_ABORTED = 0.35
_SHARE_OF_SEVERAL = 0.08


@dataclass(frozen=True)
class Order:
    """One request as it is given to the engine."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    leaves: Moment | None = None
    #: the error with which the engine must refuse it
    refusal: type[PaddleDSError] | None = None


class Workload:
    """A client population that is the same for the same ``seed``."""

    def __init__(self, limits: Limits, seed: int) -> None:
        self._limits = limits
        self._random = random.Random(seed)
        self._count = 0
        self._beginnings = [self._ids(8, limits.max_context_tokens // 3) for _ in range(_NUM_BEGINNINGS)]
        self._conversations: deque[list[int]] = deque(maxlen=_NUM_CONVERSATIONS)
        self._rate = 0.0
        self._rate_steps = 0

    def arrivals(self) -> Iterator[Order]:
        """Orders that come before the next step."""
        if self._rate_steps == 0:
            self._rate, most = self._random.choice(_RATES)
            self._rate_steps = self._random.randint(10, most)
        self._rate_steps -= 1
        whole = int(self._rate)
        for _ in range(whole + (self._random.random() < self._rate - whole)):
            yield from self.orders()

    def orders(self) -> list[Order]:
        """One client's request: one order, or one for each of ``n`` answers."""
        if self._random.random() < _SHARE_REFUSED:
            return [self._refused()]
        prompt = self._prompt()
        room = self._limits.max_context_tokens - len(prompt)
        choices = self._params(room).each_choice()
        return [Order(self._name(), list(prompt), params, self._leaves()) for params in choices]

    def remember(self, token_ids: Sequence[int]) -> None:
        """A conversation that may be continued: prompt and answer are the beginning of a later prompt."""
        self._conversations.append(list(token_ids))

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _name(self) -> str:
        self._count += 1
        return f"r{self._count}"

    def _leaves(self) -> Moment | None:
        return self._random.choice(MOMENTS) if self.chance(_SHARE_ABORTED) else None

    def _ids(self, low: int, high: int) -> list[int]:
        return [self._random.randrange(self._limits.num_tokens) for _ in range(self._random.randint(low, high))]

    def _prompt(self) -> list[int]:
        longest = self._limits.max_context_tokens - 1
        if self.chance(0.02):  # a new system prompt comes into fashion
            self._random.choice(self._beginnings)[:] = self._ids(8, longest // 3)
        kind = self._random.random()
        if kind < 0.1:
            ids = self._ids(1, longest)
        elif kind < 0.3:
            ids = self._ids(1, 40)
        elif kind < 0.45 and self._conversations:
            ids = self._random.choice(self._conversations) + self._ids(1, 24)
        elif kind < 0.6:  # a beginning that is cut somewhere and goes on in another way
            beginning = self._random.choice(self._beginnings)
            ids = beginning[: self._random.randint(1, len(beginning))] + self._ids(0, 24)
        else:
            ids = self._random.choice(self._beginnings) + self._ids(0, 40)
        return ids[:longest]

    def _params(self, room: int) -> SamplingParams:
        pick = self._random
        limit = 1 + int((room - 1) * pick.random() ** 2) if self.chance(0.98) else None
        temperature = 0.0 if self.chance(0.55) else pick.choice([0.3, 0.7, 1.0, 2.0])
        any_seed = pick.randint(-(2**63), 2**63 - 1)
        options: dict[str, Any] = {
            "n": pick.randint(2, 4) if self.chance(_SHARE_OF_SEVERAL) else 1,
            "max_tokens": limit,
            "temperature": temperature,
            # without one the engine would pick it, and no run could be repeated
            "seed": any_seed if temperature else None,
            "ignore_eos": self.chance(0.7),
        }
        if self.chance(0.2):
            options |= {"top_p": pick.choice([0.1, 0.9, 0.95]), "top_k": pick.choice([0, 1, 40]), "min_p": pick.choice([0, 0.05])}
        if self.chance(0.15):
            options |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.5}
        if self.chance(0.1):
            options["logit_bias"] = {token: pick.uniform(-5, 5) for token in self._ids(1, 8)}
        if self.chance(0.2):
            options["stop_token_ids"] = tuple(self._ids(1, 30))
            options["min_tokens"] = pick.randint(0, min(8, limit or room))
        if self.chance(0.2):
            options["logprobs"] = pick.choice([0, 1, 5])
        return SamplingParams(**options)

    def _refused(self) -> Order:
        """An order that breaks a limit, and how the engine has to refuse it."""
        context, beyond = self._limits.max_context_tokens, self._limits.num_tokens
        bad_id = self._random.choice([-1, beyond, beyond + 7, 2**40])
        broken: list[tuple[list[int], dict[str, Any], type[PaddleDSError]]] = [
            (self._ids(context, 2 * context), {}, PromptTooLong),
            (self._ids(9, 9), {"max_tokens": context - 8}, PromptTooLong),
            ([], {"max_tokens": 1}, InvalidRequest),
            ([*self._ids(0, 9), bad_id, *self._ids(0, 9)], {"max_tokens": 4}, InvalidRequest),
            (self._ids(1, 9), {"max_tokens": 4, "stop_token_ids": (bad_id,)}, InvalidRequest),
            (self._ids(1, 9), {"max_tokens": 4, "logit_bias": {bad_id: 1.0}}, InvalidRequest),
        ]
        prompt, options, refusal = self._random.choice(broken)
        return Order(self._name(), prompt, SamplingParams(**options), refusal=refusal)
