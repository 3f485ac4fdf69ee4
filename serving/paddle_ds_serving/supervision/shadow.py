"""The shadow comparison of an update: what is asked for, what HTTP workers report, and what two engines' answers tell.

    HTTP worker ── answered by the old engine ── report ──► supervisor ── the same again ──► the engine that joins
                                                                └── old and new answer, token by token ──► ShadowResult

Nothing here is written down: reports hold prompts, which stay in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import InvalidRequest, ShadowMismatchError


class ShadowPlan(msgspec.Struct, frozen=True):
    """What is compared before an update switches."""

    #: of the requests that workers begin while it runs
    percent: float
    num_requests: int = 50
    limit_s: float = 300.0
    #: least agreement with which the update goes on; ``None``: it goes on whatever comes out
    min_agreement: float | None = None

    @classmethod
    def read(cls, question: Mapping[str, Any]) -> ShadowPlan | None:
        """The plan that the fields of a question ask for; ``None`` where they ask for none.

        Raises:
            InvalidRequest: a value is wrong, or there are others without ``shadow``; the message names the field.
        """
        given = {name: question[name] for name in _FIELDS if question.get(name) is not None}
        for name, value in given.items():
            _FIELDS[name].check(name, value)
        if given and "shadow" not in given:
            name = next(iter(given))
            raise InvalidRequest(f"{name} is of a shadow comparison, which is not asked for; give shadow, too", param=name)
        return cls(**{_FIELDS[name].attribute: value for name, value in given.items()}) if given else None


class _Field(msgspec.Struct, frozen=True):
    attribute: str
    most: float
    expected: str
    whole: bool = False

    def check(self, name: str, value: Any) -> None:
        right = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        if not right or not 0 < value <= self.most:
            raise InvalidRequest(f"{name} is {value!r}; expected {self.expected}", param=name)


_FIELDS = {
    "shadow": _Field("percent", 100, "a percentage above 0, at most 100"),
    "shadow_requests": _Field("num_requests", 10_000, "a whole number from 1 to 10000", whole=True),
    "shadow_limit_s": _Field("limit_s", 3600, "seconds above 0, at most 3600"),
    "min_agreement": _Field("min_agreement", 1, "a share above 0, at most 1"),
}


class Answered(msgspec.Struct, frozen=True):
    """One answer of the old engine. Times are the engine's own: seconds since it received the request."""

    prompt_ids: list[int]
    params: SamplingParams
    token_ids: list[int]
    #: the token that ended it, where one did; it is not among ``token_ids``
    stop_token_id: int | None
    first_token_s: float
    total_s: float

    @property
    def tokens(self) -> list[int]:
        """All that the engine chose, the end included."""
        return self.token_ids if self.stop_token_id is None else [*self.token_ids, self.stop_token_id]


class Report(msgspec.Struct, frozen=True):
    """One request that a worker has had answered: all its answers, which ran together."""

    #: socket of the engine that joined when the request was chosen
    session: str
    answers: list[Answered]
    #: reports that this worker could not hand over since the one before
    num_missed: int = 0


#: collects what msgspec must know of it now, not at the first use by one of many threads, which would end the process
msgspec.json.Decoder(Report)


class Replayed(msgspec.Struct, frozen=True):
    """One answer of the new engine; ``None`` in its place says that it failed where the old one had answered."""

    tokens: list[int]
    first_token_s: float
    total_s: float


class Seconds(msgspec.Struct, frozen=True):
    """A time, over all requests that were compared."""

    median: float
    p95: float


class OldAndNew(msgspec.Struct, frozen=True):
    """The same time of the engine that serves and of the one that joins."""

    old: Seconds
    new: Seconds


class ShadowResult(msgspec.Struct, frozen=True):
    """Live requests that a new engine answered, too, before it is switched to. `agreement` is the mean share of equal tokens."""

    #: how many were to be compared
    requests: int
    compared: int
    #: of these: every token of every answer is the same
    identical: int
    #: of these: the new engine failed with what the old one had answered
    failed: int
    #: reports that were dropped, or that the new engine was too busy for
    missed: int
    #: mean over the requests that were compared; ``None``: there was none
    agreement: float | None
    first_token_s: OldAndNew | None
    total_s: OldAndNew | None


def agreement(old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]) -> float:
    """Share of positions, up to the end of the longer answer, at which both have the same token; over a request's answers."""
    num_positions = sum(max(len(a), len(b)) for a, b in zip(old, new, strict=True))
    num_same = sum(x == y for a, b in zip(old, new, strict=True) for x, y in zip(a, b, strict=False))
    return num_same / num_positions if num_positions else 1.0


class Tally:
    """Adds up what was compared. Not thread-safe."""

    def __init__(self, plan: ShadowPlan) -> None:
        self._plan = plan
        self.num_missed = 0
        self.num_compared = 0
        self._num_identical = 0
        self._num_failed = 0
        self._agreements: list[float] = []
        self._first_token_s: list[tuple[float, float]] = []
        self._total_s: list[tuple[float, float]] = []

    def add(self, answers: Sequence[Answered], replayed: Sequence[Replayed] | None) -> None:
        """One request: what the old engine answered, and the new one; ``None``: the new one failed, and agrees in nothing."""
        self.num_compared += 1
        if replayed is None:
            self._num_failed += 1
            self._agreements.append(0.0)
            return
        old, new = [answer.tokens for answer in answers], [answer.tokens for answer in replayed]
        self._num_identical += old == new
        self._agreements.append(agreement(old, new))
        self._first_token_s.append((_first(answers), _first(replayed)))
        self._total_s.append((_last(answers), _last(replayed)))

    def result(self) -> ShadowResult:
        """The figures so far."""
        num, found = self.num_compared, self._agreements
        return ShadowResult(
            requests=self._plan.num_requests,
            compared=num,
            identical=self._num_identical,
            failed=self._num_failed,
            missed=self.num_missed,
            agreement=math.fsum(found) / num if num else None,
            first_token_s=_old_and_new(self._first_token_s),
            total_s=_old_and_new(self._total_s),
        )


def judge(plan: ShadowPlan, result: ShadowResult) -> None:
    """Let the update go on.

    Raises:
        ShadowMismatchError: the plan asks for more agreement, or for more requests to judge by, than there was.
    """
    least = plan.min_agreement
    if least is None:
        return
    if result.compared < plan.num_requests:
        raise ShadowMismatchError(
            f"only {result.compared} of {plan.num_requests} requests were compared within {plan.limit_s:g} s "
            f"({result.missed} missed), too few to say whether the agreement is at least {least:g}"
        )
    if result.agreement is not None and result.agreement < least:
        raise ShadowMismatchError(
            f"the answers to {result.compared} live requests agree with those of the current model in {result.agreement:.4f} of "
            f"their tokens; min_agreement is {least:g} ({result.identical} identical, {result.failed} failed)"
        )


def _first(answers: Sequence[Answered] | Sequence[Replayed]) -> float:
    return min(answer.first_token_s for answer in answers)


def _last(answers: Sequence[Answered] | Sequence[Replayed]) -> float:
    return max(answer.total_s for answer in answers)


def _old_and_new(pairs: Sequence[tuple[float, float]]) -> OldAndNew | None:
    return OldAndNew(*_columns(pairs)) if pairs else None


def _columns(pairs: Sequence[tuple[float, float]]) -> Iterator[Seconds]:
    for column in zip(*pairs, strict=True):
        values = sorted(column)
        yield Seconds(round(_nearest_rank(values, 0.5), 4), round(_nearest_rank(values, 0.95), 4))


def _nearest_rank(values: Sequence[float], share: float) -> float:
    return values[math.ceil(share * len(values)) - 1]
