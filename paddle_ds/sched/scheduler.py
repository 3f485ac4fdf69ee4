"""Continuous batching: decode first, then prompt pieces, then newcomers, within a token budget and the blocks there are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from paddle_ds.config.engine import SchedulerConfig
from paddle_ds.errors import PromptTooLong, ServerOverloaded
from paddle_ds.sched.blocks import BlockPool, extend_digests
from paddle_ds.sched.plan import Chunk, EndReason, NewToken, RequestEnd, SampledToken, StepOutput, StepPlan
from paddle_ds.sched.request import Request, Status


class Scheduler:
    """Decides, step by step, which tokens of which requests are computed.

    Admission is first come, first served. When blocks run out the newest running request is preempted: its blocks are
    given back and it starts over later, its answer so far becoming part of what is computed again. A request whose beginning
    is still in the cache shares those blocks and computes the rest.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool, clock: Callable[[], float] = time.monotonic) -> None:
        assert config.max_batch_tokens >= config.max_running_requests, "EngineConfig has refused this"
        self._config = config
        #: what a step and the running requests are held to now; see :meth:`limit_step`
        self.max_batch_tokens = config.max_batch_tokens
        self.max_running_requests = config.max_running_requests
        self._clock = clock
        self.pool = pool
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._requests: dict[str, Request] = {}
        self.num_preemptions = 0
        #: prompt tokens of admitted requests, and those of them that were in the cache already
        self.num_prefix_query_tokens = 0
        self.num_prefix_hit_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ServerOverloaded: the queue is full.
            PromptTooLong: the request could not finish even if it had the cache to itself.
        """
        assert request.request_id not in self._requests, f"request id {request.request_id} is in use"
        if len(self.waiting) >= self._config.max_waiting_requests:
            raise ServerOverloaded(f"{len(self.waiting)} requests are waiting already; try again later")
        capacity_tokens = self.pool.num_blocks * self.pool.block_tokens
        if request.num_prompt_tokens + request.max_new_tokens > capacity_tokens:
            raise PromptTooLong.of(request.num_prompt_tokens, request.max_new_tokens, capacity_tokens)
        self._requests[request.request_id] = request
        self.waiting.append(request)

    def get(self, request_id: str) -> Request | None:
        """The request, or ``None`` when it is over or was never here."""
        return self._requests.get(request_id)

    def abort(self, request_ids: Iterable[str]) -> list[RequestEnd]:
        """End requests between two steps; unknown ids are those that ended by themselves."""
        found = [self._requests[request_id] for request_id in dict.fromkeys(request_ids) if request_id in self._requests]
        return [self._end(request, "abort") for request in found]

    def limit_step(self, max_tokens: int) -> None:
        """Hold the next steps to ``max_tokens`` tokens, where a larger one has failed for want of memory, or lift that again.

        Requests that do not fit into such a step any more are preempted, the newest first; they lose nothing but time.
        """
        self.max_batch_tokens = max(1, min(max_tokens, self._config.max_batch_tokens))
        self.max_running_requests = min(self._config.max_running_requests, self.max_batch_tokens)
        while len(self.running) > self.max_running_requests:
            self._preempt(self.running[-1])

    def schedule(self) -> StepPlan:
        """Plan the next step. An empty plan means there is nothing to do."""
        chunks: dict[str, Chunk] = {}
        decoding = [request for request in self.running if request.num_tokens_to_compute == 1]
        limit = self.max_batch_tokens
        if decoding:
            limit = min(limit, 2 * len(decoding) + self._config.prompt_tokens_beside_decode)
        budget = limit
        prefilling = [request for request in self.running if request.num_tokens_to_compute > 1]
        for request in decoding + prefilling:
            if request.status is Status.RUNNING and budget > 0:
                num_tokens = min(request.num_tokens_to_compute, budget)
                if self._make_room(request, num_tokens, chunks):
                    chunks[request.request_id] = self._chunk(request, num_tokens)
                    budget = limit - sum(chunk.num_tokens for chunk in chunks.values())
        while budget > 0 and self._may_admit():
            request = self._admit()
            num_tokens = min(request.num_tokens_to_compute, budget)
            self._grow(request, num_tokens)
            chunks[request.request_id] = self._chunk(request, num_tokens)
            budget -= num_tokens
        return StepPlan(tuple(chunks.values()))

    def update(self, plan: StepPlan, tokens: Sequence[SampledToken]) -> StepOutput:
        """Take in what the runner sampled: one entry for each chunk with ``sample``, in the plan's order."""
        output = StepOutput()
        assert len(tokens) == sum(chunk.sample for chunk in plan.chunks), "one token for each sampled chunk"
        remaining = iter(tokens)
        for chunk in plan.chunks:
            chunk.request.num_computed_tokens += chunk.num_tokens
            self._remember(chunk.request, chunk.num_tokens)
            if chunk.sample:
                self._take_token(chunk.request, next(remaining), output)
        return output

    def _take_token(self, request: Request, sampled: SampledToken, output: StepOutput) -> None:
        request.token_ids.append(sampled.token_id)
        if request.first_token_s is None:
            request.first_token_s = self._clock()
        if sampled.token_id in request.end_ids:
            output.ended.append(self._end(request, "stop", sampled.token_id))
            return
        output.tokens.append(NewToken(request, sampled))
        if request.num_output_tokens >= request.max_new_tokens:
            output.ended.append(self._end(request, "length"))

    def _end(self, request: Request, reason: EndReason, stop_token_id: int | None = None) -> RequestEnd:
        if request.status is Status.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._release(request)
        request.status = Status.FINISHED
        del self._requests[request.request_id]
        return RequestEnd(request, reason, stop_token_id)

    def _chunk(self, request: Request, num_tokens: int) -> Chunk:
        start = request.num_computed_tokens
        ids = request.token_ids[start : start + num_tokens]
        return Chunk(request, start, ids, sample=start + num_tokens == request.num_tokens)

    def _missing_blocks(self, request: Request, num_tokens: int) -> int:
        return self.pool.blocks_for(request.num_computed_tokens + num_tokens) - len(request.block_ids)

    def _grow(self, request: Request, num_tokens: int) -> None:
        request.block_ids += self.pool.allocate(self._missing_blocks(request, num_tokens))

    def _make_room(self, request: Request, num_tokens: int, chunks: dict[str, Chunk]) -> bool:
        """Give ``request`` blocks for its next tokens, preempting the newest while there are none; false if that is itself."""
        while self._missing_blocks(request, num_tokens) > self.pool.num_free_blocks:
            victim = self.running[-1]
            self._preempt(victim)
            chunks.pop(victim.request_id, None)
            if victim is request:
                return False
        self._grow(request, num_tokens)
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.status = Status.WAITING
        self.waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        self.pool.free(request.block_ids)
        request.block_ids = []

    def _may_admit(self) -> bool:
        """Whether the first waiting request fits: all its tokens and one more, beside what running prefills still need."""
        if not self.waiting or len(self.running) >= self.max_running_requests:
            return False
        if not self.running:
            return True
        promised = sum(self._missing_blocks(request, request.num_tokens_to_compute) for request in self.running)
        first = self.waiting[0]
        shared = self._shareable(first)
        needed = self.pool.blocks_for(first.num_tokens + 1) - len(shared)
        return needed + promised <= self.pool.num_free_blocks - self.pool.num_unused(shared)

    def _admit(self) -> Request:
        request = self.waiting.popleft()
        request.status = Status.RUNNING
        shared = self._shareable(request)
        self.pool.share(shared)
        request.block_ids = shared
        request.num_computed_tokens = len(shared) * self.pool.block_tokens
        if request.scheduled_s is None:
            request.scheduled_s = self._clock()
            request.num_cached_tokens = request.num_computed_tokens
            self.num_prefix_query_tokens += request.num_prompt_tokens
            self.num_prefix_hit_tokens += request.num_cached_tokens
        self.running.append(request)
        return request

    def _shareable(self, request: Request) -> list[int]:
        """Blocks that hold the request's beginning. Its last token is always computed: its logits are needed."""
        num_blocks = (request.num_tokens - 1) // self.pool.block_tokens
        extend_digests(request.block_digests, request.token_ids, num_blocks, self.pool.block_tokens)
        return self.pool.find(request.block_digests[:num_blocks])

    def _remember(self, request: Request, num_new_tokens: int) -> None:
        """Make blocks that this step has filled known."""
        first = (request.num_computed_tokens - num_new_tokens) // self.pool.block_tokens
        full = request.num_computed_tokens // self.pool.block_tokens
        if full > first:
            extend_digests(request.block_digests, request.token_ids, full, self.pool.block_tokens)
            for index in range(first, full):
                self.pool.remember(request.block_ids[index], request.block_digests[index])
