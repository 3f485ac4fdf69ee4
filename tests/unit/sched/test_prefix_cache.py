"""Requests with the same beginning share its blocks."""

from __future__ import annotations

from fake_runner import FakeRunner, answer_of, make_request
from paddle_ds.config.engine import SchedulerConfig
from paddle_ds.sched import BlockPool, Request, Scheduler

BEGINNING = [1, 2, 3, 4, 5, 6, 7, 0]


class Bench:
    """A scheduler over a fake model with blocks of four tokens."""

    def __init__(self, num_blocks: int = 16) -> None:
        self.pool = BlockPool(num_blocks, 4)
        self.scheduler = Scheduler(SchedulerConfig(4, 8, 16), self.pool)
        self.runner = FakeRunner(4)

    def add(self, request: Request) -> None:
        self.scheduler.add(request)

    def step(self) -> list[tuple[str, int, int]]:
        """(request, first position, tokens) of each chunk."""
        plan = self.scheduler.schedule()
        self.scheduler.update(plan, self.runner.execute(plan))
        return [(chunk.request.request_id, chunk.start, chunk.num_tokens) for chunk in plan.chunks]

    def run(self, *requests: Request) -> None:
        for request in requests:
            self.add(request)
        while self.scheduler.has_work:
            self.step()


def test_a_known_beginning_is_not_computed_again() -> None:
    bench = Bench()
    first, second = make_request("a", [*BEGINNING, 3]), make_request("b", [*BEGINNING, 5, 6])
    bench.run(first)
    bench.add(second)
    assert bench.step() == [("b", 8, 2)]
    bench.run()
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    assert second.output_ids == answer_of(second)
    assert bench.pool.num_free_blocks == bench.pool.num_blocks


def test_two_running_requests_share_blocks_until_both_are_over() -> None:
    bench = Bench()
    bench.add(make_request("a", [*BEGINNING, 3], max_new_tokens=8))
    bench.step()
    bench.add(make_request("b", [*BEGINNING, 4], max_new_tokens=2))
    bench.step()
    assert bench.pool.num_blocks - bench.pool.num_free_blocks == 4  # two shared, one of each
    bench.run()
    assert bench.pool.num_free_blocks == bench.pool.num_blocks


def test_the_last_token_is_always_computed() -> None:
    bench = Bench()
    bench.run(make_request("a", BEGINNING))
    bench.add(make_request("b", BEGINNING))
    assert bench.step() == [("b", 4, 4)]


def test_the_same_block_after_another_beginning_is_not_shared() -> None:
    bench = Bench()
    bench.run(make_request("a", [1, 1, 1, 1, 2, 2, 2, 2, 3]))
    bench.add(make_request("b", [0, 0, 0, 0, 2, 2, 2, 2, 3]))
    assert bench.step() == [("b", 0, 9)]


def test_an_answer_can_be_the_beginning_of_the_next_turn() -> None:
    bench = Bench()
    first = make_request("a", BEGINNING, max_new_tokens=4)
    bench.run(first)
    bench.add(make_request("b", [*BEGINNING, *first.output_ids, 7]))
    # the last sampled token was never computed, so the third block is not full
    assert bench.step() == [("b", 8, 5)]


def test_blocks_that_are_needed_for_something_else_are_forgotten() -> None:
    bench = Bench(num_blocks=4)
    bench.run(make_request("a", [*BEGINNING, 3], max_new_tokens=1))
    bench.run(make_request("other", [0] * 15, max_new_tokens=1))
    bench.add(make_request("b", [*BEGINNING, 3], max_new_tokens=1))
    assert bench.step() == [("b", 0, 9)]


def test_after_forgetting_all_nothing_is_shared() -> None:
    bench = Bench()
    bench.run(make_request("a", [*BEGINNING, 3]))
    bench.pool.forget_all()
    assert bench.pool.num_known_blocks == 0
    bench.add(make_request("b", [*BEGINNING, 3]))
    assert bench.step() == [("b", 0, 9)]
