"""The circuit breaker: opens when too much fails, tries one request later, and judges nobody for another's faults."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import Fail, say

from paddle_ds.errors import CircuitOpen, EngineDied, EngineUnavailable, InternalError, InvalidRequest, ServerOverloaded
from paddle_ds_serving.breaker import MIN_REQUESTS, OPEN_S, WINDOW_S, Breaker, is_failure


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def run(breaker: Breaker, *ends: bool | None, engine: str = "e") -> None:
    for failed in ends:
        breaker.admit(engine)
        breaker.ended(engine, failed)


def is_open(breaker: Breaker, engine: str = "e") -> bool:
    try:
        breaker.admit(engine)
    except CircuitOpen:
        return True
    breaker.ended(engine, None)
    return False


def opened(breaker: Breaker) -> None:
    run(breaker, *[False] * (MIN_REQUESTS - 2), True, True)
    assert is_open(breaker)


def test_few_requests_say_nothing(breaker: Breaker) -> None:
    run(breaker, *[True] * (MIN_REQUESTS - 1))
    assert not is_open(breaker)


def test_five_per_cent_are_borne_and_no_more(breaker: Breaker) -> None:
    run(breaker, *[False] * 19, True)
    assert not is_open(breaker)
    run(breaker, True)
    assert is_open(breaker)


def test_old_failures_are_forgotten(breaker: Breaker, clock: Clock) -> None:
    run(breaker, *[True] * (MIN_REQUESTS - 1))
    clock.now_s += WINDOW_S + 1
    run(breaker, *[False] * MIN_REQUESTS, True)
    assert not is_open(breaker)


def test_one_request_at_a_time_is_tried_after_a_pause(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now_s += OPEN_S
    breaker.admit("e")
    with pytest.raises(CircuitOpen):
        breaker.admit("e")
    breaker.ended("e", False)
    assert not is_open(breaker)


def test_a_trial_that_fails_opens_it_again(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now_s += OPEN_S
    run(breaker, True)
    assert is_open(breaker)


def test_a_trial_that_its_client_gives_up_tells_nothing(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now_s += OPEN_S
    run(breaker, None)
    run(breaker, False)
    assert not is_open(breaker)


def test_another_engine_begins_with_a_clean_record(breaker: Breaker) -> None:
    opened(breaker)
    assert not is_open(breaker, "another")
    breaker.ended("e", True)  # of the engine before: not this one's fault
    run(breaker, *[False] * MIN_REQUESTS, engine="another")
    assert not is_open(breaker, "another")


def test_refusals_are_no_failures() -> None:
    assert [is_failure(kind("x")) for kind in (InternalError, EngineDied)] == [True, True]
    assert [is_failure(kind("x")) for kind in (EngineUnavailable, ServerOverloaded, InvalidRequest)] == [False] * 3


def test_a_worker_answers_503_while_it_is_open(make_server: Any) -> None:
    server = make_server(say(Fail(InternalError("broken"))))
    for _ in range(MIN_REQUESTS):
        assert server.chat().status_code == 500
    response = server.chat()
    assert (response.status_code, response.json["error"]["code"]) == (503, "circuit_open")
    assert response.headers["retry-after"] == "5"
    assert b"paddle_ds:circuit_openings_total 1.0" in server.get("/metrics").data
    assert server.get("/health").status_code == 200
