"""Collects the answers of an :class:`~paddle_ds.engine.llm.LLM` while they are generated."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.engine.core import Progress
from paddle_ds.errors import PaddleDSError
from paddle_ds.sched import RequestEnd, SampledToken
from paddle_ds.text import TextDelta, TextStream


@dataclasses.dataclass
class Job:
    """One prompt of a call, and the requests it became."""

    prompt: str | None
    prompt_ids: list[int]
    reasoning: bool = False
    request_ids: list[str] = dataclasses.field(default_factory=list)


class Answer:
    """One answer.

    Attributes:
        deltas: text that nobody has taken yet, for a streamed answer.
        finish_reason: why it is over; ``None`` while it is not.
        error: what ended it badly.
    """

    def __init__(self, index: int, params: SamplingParams, stream: TextStream) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self.error: PaddleDSError | None = None
        self.token_ids: list[int] = []
        self.stream = stream
        self.logprobs: list[SampledToken] | None = None if params.logprobs is None else []
        self.deltas: collections.deque[TextDelta] = collections.deque()

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def add(self, sampled: SampledToken) -> None:
        """Take a token; the answer is over when it completed a stop string."""
        self.token_ids.append(sampled.token_id)
        if self.logprobs is not None:
            self.logprobs.append(sampled)
        delta = self.stream.push([sampled.token_id])
        self.deltas.append(delta)
        if delta.stopped:
            self.finish_reason = "stop"

    def end(self, end: RequestEnd) -> None:
        """The engine says that it is over."""
        if not self.is_over:
            delta = self.stream.finish(end.stop_token_id)
            self.deltas.append(delta)
            self.finish_reason = "stop" if delta.stopped else end.reason


def collect(progress: Progress, answers: Mapping[str, Answer]) -> list[str]:
    """Give each token and ending of a step to its answer. Returns the requests whose answers a stop string has ended."""
    stopped: list[str] = []
    for token in progress.tokens:
        answer = answers.get(token.request.request_id)
        if answer is not None and not answer.is_over:
            answer.add(token.sampled)
            if answer.is_over:
                stopped.append(token.request.request_id)
    for end in progress.ended:
        if end.request.request_id in answers:
            answers[end.request.request_id].end(end)
    for failure in progress.failed:
        if failure.request.request_id in answers:
            answers[failure.request.request_id].error = failure.error
    return stopped
