"""All answers of one HTTP request: submits them, follows them, and makes sure that none outlives its client."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import EngineUnavailable, PaddleDSError, from_info
from paddle_ds.ipc.messages import Delta, Failed, Finished, Submit
from paddle_ds.text import Tokenizer
from paddle_ds_serving.choice import Choice, Piece, total_tokens
from paddle_ds_serving.content_filter.scan import OutputFilter
from paddle_ds_serving.disconnect import POLL_S
from paddle_ds_serving.engine import EngineClient, Event
from paddle_ds_serving.http_errors import ClientGone
from paddle_ds_serving.metrics import Metrics
from paddle_ds_serving.prompts import Prompt
from paddle_ds_serving.protocol.chat import ReasoningFormat
from paddle_ds_serving.protocol.usage import UsageBody
from paddle_ds_serving.request_log import RequestRecord


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be generated: ``params.n`` answers to each prompt, in this order in the response."""

    response_id: str
    prompts: Sequence[Prompt]
    params: SamplingParams
    #: how reasoning is told from the answer; ``None``: the text is not split at all
    reasoning_format: ReasoningFormat | None


class Generation:
    """The answers of one order.

    Raises:
        EngineUnavailable, ServerOverloaded: from the constructor, where the engine takes no requests.
    """

    def __init__(
        self,
        order: Order,
        tokenizer: Tokenizer,
        engine: EngineClient,
        metrics: Metrics,
        record: RequestRecord,
        is_gone: Callable[[], bool],
        on_close: Callable[[], None] = lambda: None,
        make_filter: Callable[[], OutputFilter | None] = lambda: None,
    ) -> None:
        self.choices: list[Choice] = []
        self._metrics = metrics
        self._record = record
        self._is_gone = is_gone
        self._on_close = on_close
        self._closed = False
        self._failure: PaddleDSError | None = None
        self._last_token_s: dict[str, float] = {}
        self._next_look_s = 0.0
        each = order.params.each_choice()
        submits: list[Submit] = []
        for prompt in order.prompts:
            for params in each:
                index = len(submits)
                submit = Submit(f"{order.response_id}-{index}", prompt.ids, params)
                submits.append(submit)
                self.choices.append(Choice(index, submit, prompt, tokenizer, order.reasoning_format, make_filter()))
        self._by_id = {choice.request_id: choice for choice in self.choices}
        self.prompts = order.prompts
        record.response_id = order.response_id
        record.num_choices = len(submits)
        record.num_prompt_tokens = sum(len(prompt.ids) for prompt in order.prompts)
        self._stream = engine.submit(submits)
        record.submitted_s = record.elapsed_s()

    @property
    def done(self) -> bool:
        """Every answer has ended."""
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def failure(self) -> PaddleDSError | None:
        """What the engine failed with, if it did."""
        return self._failure

    def wait(self, timeout_s: float) -> bool:
        """Wait for news, and take all that there is. False where ``timeout_s`` passed in silence.

        Raises:
            ClientGone: nobody waits for the answers any more.
            PaddleDSError: see :meth:`raise_failure`; what came before a failure can be taken first.
        """
        self.raise_failure()
        deadline_s = time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            self._look_for_client(now_s)
            event = self._stream.get(max(0.0, min(deadline_s - now_s, POLL_S)))
            if event is not None:
                while event is not None:
                    self._take(event)
                    event = self._stream.get(0.0)
                return True
            if time.monotonic() >= deadline_s:
                return False

    def raise_failure(self) -> None:
        """Raise what the engine failed with, if it did: one failed answer fails the request."""
        if self._failure is not None:
            raise self._failure

    def run(self) -> None:
        """Wait until every answer has ended. Raises as :meth:`wait` does."""
        while not self.done:
            self.wait(POLL_S)

    def pieces(self) -> list[Piece]:
        """What is new of each answer, in the order of the answers."""
        pieces = (choice.take() for choice in self.choices)
        return [piece for piece in pieces if piece is not None]

    def usage(self) -> UsageBody:
        """What the request cost so far."""
        choices = self.choices
        num_each = len(choices) // len(self.prompts)
        cached = [choice.usage.num_cached_tokens if choice.usage else 0 for choice in choices[::num_each]]
        return UsageBody.of(
            sum(len(prompt.ids) for prompt in self.prompts),
            total_tokens(choices),
            cached=sum(cached),
            reasoning=sum(choice.text.num_reasoning_tokens for choice in choices),
        )

    def close(self) -> None:
        """Abort what still runs and complete the record. May be called at any time; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self._on_close()
        if not self.done:
            self._stream.abort()
            self._record.error_code = self._record.error_code or ClientGone.code
        if self._record.ended_s is None:
            self._record.ended_s = self._record.elapsed_s()
        usage = self.usage()
        self._record.usages = [choice.usage for choice in self.choices if choice.usage is not None]
        self._record.num_output_tokens = usage.completion_tokens
        self._record.num_cached_tokens = usage.prompt_tokens_details.cached_tokens
        self._record.finish_reasons = ",".join(choice.finish_reason or "abort" for choice in self.choices)

    def _look_for_client(self, now_s: float) -> None:
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + POLL_S
        if self._is_gone():
            raise ClientGone("the client closed its connection")

    def _take(self, event: Event) -> None:
        choice = self._by_id.get(event.request_id)
        assert choice is not None, f"an event for {event.request_id}, which was not submitted here"
        match event:
            case Delta():
                self._time_tokens(event)
                if choice.push(event):
                    self._stream.abort([choice.request_id])
                    self._count(choice)
            case Finished():
                if choice.finish_reason is not None:
                    return
                if event.reason == "abort":
                    self._fail(EngineUnavailable("the server is shutting down; the answer is incomplete"))
                    return
                choice.finish(event)
                self._count(choice)
            case Failed():
                if choice.finish_reason is None:
                    self._fail(from_info(event.error))

    def _fail(self, error: PaddleDSError) -> None:
        self._failure = self._failure or error
        self._record.ended_s = self._record.elapsed_s()

    def _time_tokens(self, delta: Delta) -> None:
        now_s = time.perf_counter()
        last_s = self._last_token_s.get(delta.request_id)
        self._last_token_s[delta.request_id] = now_s
        if last_s is None:
            self._metrics.time_to_first_token.observe(now_s - self._record.started_s)
            if self._record.first_token_s is None:
                self._record.first_token_s = round(now_s - self._record.started_s, 4)
            return
        num_tokens = len(delta.token_ids)
        for _ in range(num_tokens):
            self._metrics.inter_token_latency.observe((now_s - last_s) / num_tokens)

    def _count(self, choice: Choice) -> None:
        reason = choice.finish_reason or "abort"
        if self.done:
            self._record.ended_s = self._record.elapsed_s()
        self._metrics.answer_finished(reason, choice.usage, time.perf_counter() - self._record.started_s)
