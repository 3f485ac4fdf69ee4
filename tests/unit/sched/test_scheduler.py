"""Who is computed in which step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fake_runner import FakeRunner, answer_of, make_request
from paddle_ds.config.engine import SchedulerConfig
from paddle_ds.errors import PromptTooLong, ServerOverloaded
from paddle_ds.sched import BlockPool, Request, SampledToken, Scheduler, Status, StepOutput, StepPlan


class Bench:
    """A scheduler over a fake model: ``step()`` returns what was planned, by request."""

    def __init__(self, num_blocks: int = 16, block_tokens: int = 4, **config: int) -> None:
        self.pool = BlockPool(num_blocks, block_tokens)
        limits = {"max_running_requests": 4, "max_waiting_requests": 8, "max_batch_tokens": 16} | config
        self.scheduler = Scheduler(SchedulerConfig(**limits), self.pool, clock=lambda: 7.0)
        self.runner = FakeRunner(block_tokens)
        self.ended: dict[str, str] = {}
        self.outputs: list[StepOutput] = []

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)

    def step(self) -> list[tuple[str, int, int]]:
        """(request, first position, tokens) of each chunk."""
        plan = self.scheduler.schedule()
        output = self.scheduler.update(plan, self.runner.execute(plan))
        self.outputs.append(output)
        self.ended |= {end.request.request_id: end.reason for end in output.ended}
        return planned(plan)

    def run(self) -> None:
        while self.scheduler.has_work:
            assert self.step()


def planned(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(chunk.request.request_id, chunk.start, chunk.num_tokens) for chunk in plan.chunks]


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert Bench().scheduler.schedule().chunks == ()


def test_a_request_is_prefilled_then_decoded() -> None:
    bench = Bench()
    bench.add(make_request("a", 5, max_new_tokens=3))
    assert [bench.step() for _ in range(3)] == [[("a", 0, 5)], [("a", 5, 1)], [("a", 6, 1)]]
    assert bench.ended == {"a": "length"}
    assert bench.pool.num_free_blocks == bench.pool.num_blocks


def test_admission_is_first_come_first_served() -> None:
    bench = Bench(max_running_requests=2)
    bench.add(*(make_request(name, 3) for name in "abc"))
    assert bench.step() == [("a", 0, 3), ("b", 0, 3)]
    assert [request.request_id for request in bench.scheduler.waiting] == ["c"]


def test_a_large_first_request_is_not_overtaken() -> None:
    bench = Bench(num_blocks=4)
    bench.add(make_request("a", 8, max_new_tokens=4), make_request("large", 12), make_request("small", 1))
    assert bench.step() == [("a", 0, 8)]
    assert bench.step() == [("a", 8, 1)]


def test_decodes_come_before_prompt_pieces_and_newcomers() -> None:
    bench = Bench(max_batch_tokens=8)
    bench.add(make_request("a", 2), make_request("long", 12))
    assert bench.step() == [("a", 0, 2), ("long", 0, 6)]
    bench.add(make_request("new", 1))
    assert bench.step() == [("a", 2, 1), ("long", 6, 6), ("new", 0, 1)]


def test_a_long_prompt_is_computed_in_pieces_of_the_budget() -> None:
    bench = Bench(max_batch_tokens=4)
    bench.add(make_request("a", 10, max_new_tokens=1))
    plans = [bench.scheduler.schedule()]
    assert not plans[0].chunks[0].sample
    bench.scheduler.update(plans[0], bench.runner.execute(plans[0]))
    assert [bench.step(), bench.step()] == [[("a", 4, 4)], [("a", 8, 2)]]
    assert bench.ended == {"a": "length"}


def test_a_long_prompt_is_cut_smaller_while_others_decode() -> None:
    bench = Bench(num_blocks=40, max_batch_tokens=64, prompt_tokens_beside_decode=5)
    bench.add(make_request("a", 2, max_new_tokens=9), make_request("b", 3, max_new_tokens=3))
    bench.step()
    bench.add(make_request("long", 60))
    assert bench.step() == [("a", 2, 1), ("b", 3, 1), ("long", 0, 7)]
    assert bench.step() == [("a", 3, 1), ("b", 4, 1), ("long", 7, 7)]
    assert bench.step() == [("a", 4, 1), ("long", 14, 6)]
    bench.scheduler.abort(["a"])
    assert bench.step() == [("long", 20, 40)]


def test_blocks_are_taken_piece_by_piece() -> None:
    bench = Bench(max_batch_tokens=4)
    bench.add(make_request("a", 9))
    bench.step()
    assert bench.pool.num_free_blocks == 15
    bench.step()
    assert bench.pool.num_free_blocks == 14


def test_a_step_holds_a_token_of_every_running_request() -> None:
    bench = Bench(max_running_requests=4, max_batch_tokens=4)
    bench.add(*(make_request(name, 1, max_new_tokens=9) for name in "abcd"))
    bench.step()
    assert [name for name, _, _ in bench.step()] == ["a", "b", "c", "d"]


def test_preempts_newest_when_blocks_run_out() -> None:
    bench = Bench(num_blocks=4)
    old, new = make_request("old", 7, max_new_tokens=6), make_request("new", 6, max_new_tokens=6)
    bench.add(old, new)
    bench.step()
    assert bench.step() == [("old", 7, 1), ("new", 6, 1)]
    assert bench.step() == [("old", 8, 1)]
    assert (new.status, new.num_computed_tokens, new.block_ids) == (Status.WAITING, 0, [])
    assert (old.num_preemptions, new.num_preemptions, bench.scheduler.num_preemptions) == (0, 1, 1)


def test_a_preempted_request_recomputes_its_answer_and_goes_on() -> None:
    bench = Bench(num_blocks=4)
    old, new = make_request("old", 7, max_new_tokens=6), make_request("new", 6, max_new_tokens=6)
    bench.add(old, new)
    bench.run()
    assert new.num_preemptions == 1
    assert (old.output_ids, new.output_ids) == (answer_of(old), answer_of(new))
    # its first block was still there; the second had not been full
    assert ("new", 4, 4) in [chunk for plan in bench.runner.plans for chunk in planned(plan)]


def test_a_preempted_request_comes_before_those_that_never_ran() -> None:
    bench = Bench(num_blocks=4)
    bench.add(make_request("old", 7, max_new_tokens=6), make_request("new", 6, max_new_tokens=6), make_request("c", 1))
    for _ in range(3):
        bench.step()
    assert [request.request_id for request in bench.scheduler.waiting] == ["new", "c"]


def test_a_preempted_token_is_not_given_twice() -> None:
    bench = Bench(num_blocks=4)
    bench.add(make_request("old", 7, max_new_tokens=6), make_request("new", 6, max_new_tokens=6))
    bench.run()
    tokens = [token for output in bench.outputs for token in output.tokens if token.request.request_id == "new"]
    assert len(tokens) == 6


def test_a_request_that_needs_the_whole_cache_is_served_alone() -> None:
    bench = Bench(num_blocks=2)
    bench.add(make_request("a", 1), make_request("whole", 4, max_new_tokens=4))
    bench.run()
    assert bench.ended == {"a": "length", "whole": "length"}


def test_a_request_that_can_never_fit_is_refused_with_the_figures() -> None:
    bench = Bench(num_blocks=2)
    with pytest.raises(PromptTooLong, match=r"8 tokens; the prompt has 5 tokens and max_tokens asks for 4"):
        bench.add(make_request("a", 5, max_new_tokens=4))
    assert not bench.scheduler.has_work
    assert bench.scheduler.get("a") is None


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    bench = Bench(max_waiting_requests=2)
    bench.add(make_request("a"), make_request("b"))
    with pytest.raises(ServerOverloaded, match="2 requests are waiting"):
        bench.add(make_request("c"))
    bench.run()
    assert sorted(bench.ended) == ["a", "b"]


def test_an_id_may_be_used_again_once_it_is_over() -> None:
    bench = Bench()
    bench.add(make_request("a"))
    bench.run()
    bench.add(make_request("a"))
    bench.run()


def test_an_id_in_use_is_a_defect() -> None:
    bench = Bench()
    bench.add(make_request("a"))
    with pytest.raises(AssertionError, match="in use"):
        bench.add(make_request("a"))


def _waiting(bench: Bench) -> None:
    pass


def _in_prefill(bench: Bench) -> None:
    bench.step()


def _decoding(bench: Bench) -> None:
    for _ in range(5):
        bench.step()


@pytest.mark.parametrize("bring", [_waiting, _in_prefill, _decoding])
def test_an_abort_frees_the_blocks_at_once(bring: Callable[[Bench], None]) -> None:
    bench = Bench(max_batch_tokens=4)
    request = make_request("a", 10, max_new_tokens=9)
    bench.add(request)
    bring(bench)
    ends = bench.scheduler.abort(["a"])
    assert [(end.request, end.reason) for end in ends] == [(request, "abort")]
    assert bench.pool.num_free_blocks == bench.pool.num_blocks
    assert (request.status, bench.scheduler.has_work) == (Status.FINISHED, False)


def test_a_preempted_request_can_be_aborted() -> None:
    bench = Bench(num_blocks=4)
    bench.add(make_request("old", 7, max_new_tokens=6), make_request("new", 6, max_new_tokens=6))
    for _ in range(3):
        bench.step()
    assert [end.reason for end in bench.scheduler.abort(["new"])] == ["abort"]
    bench.run()
    assert bench.ended == {"old": "length"}


def test_aborting_what_is_over_or_unknown_does_nothing() -> None:
    bench = Bench()
    bench.add(make_request("a"))
    bench.run()
    assert bench.scheduler.abort(["a", "never"]) == []


def test_an_id_named_twice_is_aborted_once() -> None:
    bench = Bench()
    bench.add(make_request("a"))
    assert len(bench.scheduler.abort(["a", "a"])) == 1


def test_an_end_id_ends_and_is_no_token_of_the_answer() -> None:
    request = make_request("a", 3, max_new_tokens=50, end_ids=[0, 1, 2, 3])
    bench = Bench()
    bench.add(request)
    bench.run()
    last = bench.outputs[-1]
    assert [(end.reason, end.stop_token_id) for end in last.ended] == [("stop", answer_of(request)[-1])]
    assert last.tokens == []


def test_the_last_token_may_also_be_an_end_id() -> None:
    bench = Bench()
    bench.add(make_request("a", 3, max_new_tokens=1, end_ids=range(8)))
    bench.run()
    assert bench.ended == {"a": "stop"}


def test_end_ids_are_held_back_until_min_tokens_exist() -> None:
    request = make_request("a", 3, end_ids=[1], min_tokens=2)
    held_back = [request.suppressed_ids]
    for token_id in (5, 6):
        request.token_ids.append(token_id)
        held_back.append(request.suppressed_ids)
    assert held_back == [{1}, {1}, frozenset()]


def test_min_tokens_hold_through_a_preemption() -> None:
    bench = Bench(num_blocks=4)
    options = {"max_new_tokens": 6, "end_ids": [0, 1, 2, 3], "min_tokens": 6}
    old, new = make_request("old", 7, **options), make_request("new", 6, **options)
    bench.add(old, new)
    bench.run()
    assert new.num_preemptions == 1
    assert (old.num_output_tokens, new.num_output_tokens) == (6, 6)


def test_times_are_taken_once() -> None:
    bench = Bench(num_blocks=4)
    new = make_request("new", 6, max_new_tokens=6)
    bench.add(make_request("old", 7, max_new_tokens=6), new)
    bench.run()
    assert (new.scheduled_s, new.first_token_s) == (7.0, 7.0)


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_tokens_than_planned_is_a_defect(count: int) -> None:
    bench = Bench()
    bench.add(make_request("a"))
    plan = bench.scheduler.schedule()
    with pytest.raises(AssertionError, match="one token for each"):
        bench.scheduler.update(plan, [SampledToken(1)] * count)


# ---- requests that begin alike


def test_an_equal_beginning_is_not_computed_again() -> None:
    bench = Bench()
    prompt = list(range(10))
    bench.add(make_request("a", prompt))
    bench.run()
    again = make_request("b", [*prompt, 7, 7])
    bench.add(again)
    assert bench.step() == [("b", 8, 4)]
    bench.run()
    assert (again.num_cached_tokens, again.output_ids) == (8, answer_of(again))


@pytest.mark.parametrize(("length", "cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8)])
def test_the_last_token_of_a_prompt_is_always_computed(length: int, cached: int) -> None:
    bench = Bench()
    for name in "ab":
        bench.add(request := make_request(name, list(range(length))))
        bench.run()
    assert request.num_cached_tokens == cached
    assert request.output_ids == answer_of(request)


def test_an_answer_can_be_the_beginning_of_the_next_prompt() -> None:
    bench = Bench()
    first = make_request("a", [1, 2, 3], max_new_tokens=9)
    bench.add(first)
    bench.run()
    turn = make_request("b", [*first.token_ids, 5])
    bench.add(turn)
    bench.run()
    assert turn.num_cached_tokens == 8  # 12 tokens, of which the last was never computed
    assert turn.output_ids == answer_of(turn)


def test_requests_that_run_together_share_blocks() -> None:
    bench = Bench(num_blocks=6)
    prompt = list(range(9))
    bench.add(make_request("a", prompt, max_new_tokens=7))
    bench.step()
    bench.add(make_request("b", prompt, max_new_tokens=7, seed=1))
    assert bench.step() == [("a", 9, 1), ("b", 8, 1)]
    assert bench.pool.num_free_blocks == 6 - 4
    assert bench.scheduler.running[0].block_ids[:2] == bench.scheduler.running[1].block_ids[:2]
    bench.scheduler.abort(["a"])
    bench.run()
    assert bench.pool.num_free_blocks == 6


def test_a_shared_block_leaves_room_for_one_more_request() -> None:
    bench = Bench(num_blocks=5)
    prompt = list(range(8))
    bench.add(make_request("a", prompt, max_new_tokens=8))
    bench.step()
    bench.add(make_request("b", [*prompt, 1], max_new_tokens=3))
    assert [name for name, _, _ in bench.step()] == ["a", "b"]


def test_blocks_of_a_failed_step_are_not_shared() -> None:
    bench = Bench()
    prompt = list(range(9))
    bench.add(make_request("a", prompt))
    bench.runner.spoil(bench.scheduler.schedule())
    bench.scheduler.abort(["a"])
    again = make_request("b", prompt)
    bench.add(again)
    bench.run()
    assert (again.num_cached_tokens, again.output_ids) == (0, answer_of(again))


def test_what_was_forgotten_is_computed_again() -> None:
    bench = Bench()
    for name in "ab":
        bench.add(request := make_request(name, list(range(9))))
        bench.run()
        bench.pool.forget_all()
    assert (request.num_cached_tokens, request.output_ids) == (0, answer_of(request))


def test_what_a_preempted_request_finds_again_is_no_hit() -> None:
    bench = Bench(num_blocks=4)
    new = make_request("new", 6, max_new_tokens=6)
    bench.add(make_request("old", 7, max_new_tokens=6), new)
    bench.run()
    assert (new.num_preemptions, new.num_cached_tokens) == (1, 0)
