"""What holds for every sequence of arrivals, aborts and steps."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fake_runner import FakeRunner, answer_of, make_request
from paddle_ds.config.engine import SchedulerConfig
from paddle_ds.errors import PromptTooLong, ServerOverloaded
from paddle_ds.sched import BlockPool, Request, RequestEnd, Scheduler, Status


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler over :class:`FakeRunner`, which itself checks that the cache holds what attention reads."""

    @initialize(
        num_blocks=st.integers(1, 12),
        block_tokens=st.integers(1, 5),
        max_running=st.integers(1, 6),
        spare_tokens=st.integers(0, 20),
    )
    def start(self, num_blocks: int, block_tokens: int, max_running: int, spare_tokens: int) -> None:
        self.config = SchedulerConfig(max_running, max_waiting_requests=10, max_batch_tokens=max_running + spare_tokens)
        self.pool = BlockPool(num_blocks, block_tokens)
        self.scheduler = Scheduler(self.config, self.pool, clock=lambda: 0.0)
        self.runner = FakeRunner(block_tokens)
        self.accepted: list[Request] = []
        self.ends: dict[str, RequestEnd] = {}
        self.tokens: dict[str, list[int]] = {}
        self.count = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=30),  # few ids: many prompts begin alike
        max_new_tokens=st.integers(1, 20),
        end_ids=st.lists(st.integers(0, 7), max_size=2),
        min_tokens=st.integers(0, 5),
        seed=st.integers(0, 3),
    )
    def add(self, prompt: list[int], max_new_tokens: int, end_ids: list[int], min_tokens: int, seed: int) -> None:
        self.count += 1
        request = make_request(
            f"r{self.count}", prompt, max_new_tokens=max_new_tokens, end_ids=end_ids, min_tokens=min_tokens, seed=seed
        )
        too_long = len(prompt) + max_new_tokens > self.pool.num_blocks * self.pool.block_tokens
        full = len(self.scheduler.waiting) >= self.config.max_waiting_requests
        try:
            self.scheduler.add(request)
        except (PromptTooLong, ServerOverloaded):
            assert too_long or full
        else:
            assert not too_long
            assert not full
            self.accepted.append(request)
            self.tokens[request.request_id] = []

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.accepted))
        ends = self.scheduler.abort([request.request_id])
        assert len(ends) == (request.request_id not in self.ends)
        self._take_ends(ends)

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self._step()

    @rule()
    def failing_step(self) -> None:
        plan = self.scheduler.schedule()
        self.runner.spoil(plan)
        self._take_ends(self.scheduler.abort([chunk.request.request_id for chunk in plan.chunks]))

    def _step(self) -> None:
        had_work = self.scheduler.has_work
        plan = self.scheduler.schedule()
        assert had_work == bool(plan.chunks)
        assert plan.num_tokens <= self.config.max_batch_tokens
        assert len({chunk.request.request_id for chunk in plan.chunks}) == len(plan.chunks)
        assert all(chunk.num_tokens > 0 and chunk.request.status is Status.RUNNING for chunk in plan.chunks)
        if plan.chunks:  # the oldest moves in every step and is never preempted, so everybody's turn comes
            assert self.scheduler.running[0] in [chunk.request for chunk in plan.chunks]
        output = self.scheduler.update(plan, self.runner.execute(plan))
        for token in output.tokens:
            assert token.request.request_id not in self.ends
            self.tokens[token.request.request_id].append(token.sampled.token_id)
        self._take_ends(output.ended)

    def _take_ends(self, ends: list[RequestEnd]) -> None:
        for end in ends:
            assert end.request.request_id not in self.ends
            assert end.request.block_ids == []
            self.ends[end.request.request_id] = end

    @invariant()
    def blocks_add_up(self) -> None:
        held = {block for request in self.scheduler.running for block in request.block_ids}
        assert len(held) + self.pool.num_free_blocks == self.pool.num_blocks
        assert all(len(set(request.block_ids)) == len(request.block_ids) for request in self.scheduler.running)
        assert all(not request.block_ids for request in self.scheduler.waiting)
        assert len(self.scheduler.running) <= self.config.max_running_requests

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        # each step computes a token of the request that is oldest then
        most_steps = sum(request.num_prompt_tokens + request.max_new_tokens for request in self.accepted)
        for _ in range(most_steps):
            if self.scheduler.has_work:
                self._step()
        assert not self.scheduler.has_work
        assert self.pool.num_free_blocks == self.pool.num_blocks
        for request in self.accepted:
            self._check_answer(request)

    def _check_answer(self, request: Request) -> None:
        end, expected = self.ends[request.request_id], answer_of(request)
        given = self.tokens[request.request_id]
        if end.reason == "abort":
            assert given == expected[: len(given)]
            return
        assert given + ([end.stop_token_id] if end.reason == "stop" else []) == expected
        assert end.reason == ("stop" if expected[-1] in request.end_ids else "length")


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
