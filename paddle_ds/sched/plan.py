"""What the scheduler tells the runner (``StepPlan``), and what a step gave (``StepOutput``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from paddle_ds.sched.request import Request

EndReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Chunk:
    """Tokens of one request that one step computes: one while decoding, a piece of the prompt during prefill."""

    request: Request
    #: position of the first token
    start: int
    #: ids at positions ``start ..``
    token_ids: list[int]
    #: whether the last position's logits are to be sampled (false for all but the last piece of a prompt)
    sample: bool

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def context_tokens(self) -> int:
        """Tokens that the chunk's last position attends to, itself included."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True)
class StepPlan:
    """One forward pass."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


@dataclass(frozen=True)
class SampledToken:
    """What the sampler chose for one chunk. ``top``: (id, log probability), best first."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class NewToken:
    """A token that belongs to the answer (an id that ended it does not)."""

    request: Request
    sampled: SampledToken


@dataclass(frozen=True)
class RequestEnd:
    """A request that is over."""

    request: Request
    reason: EndReason
    stop_token_id: int | None = None


@dataclass(frozen=True)
class StepOutput:
    """Tokens and endings of one step."""

    tokens: list[NewToken] = field(default_factory=list)
    ended: list[RequestEnd] = field(default_factory=list)
