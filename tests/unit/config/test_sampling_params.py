"""What a request may ask for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from paddle_ds.config.sampling import SamplingParams, derive_seed
from paddle_ds.errors import InvalidRequest

INSIDE: dict[str, list[Any]] = {
    "n": [1, 128],
    "max_tokens": [None, 1, 2**31],
    "min_tokens": [0, 2**31],
    "temperature": [0, 0.0, 1e-9, 2],
    "top_p": [1e-9, 1, 1.0],
    "top_k": [0, 1, 2**31],
    "min_p": [0, 1],
    "repetition_penalty": [0.01, 1, 10],
    "presence_penalty": [-2, 2.0],
    "frequency_penalty": [-2.0, 2],
    "logit_bias": [None, {}, {0: -100}, {5: 100.0}],
    "seed": [None, 0, -(2**63), 2**63 - 1],
    "stop": [(), ("a",), ["a", "b"]],
    "stop_token_ids": [(), (0, 5), [1]],
    "logprobs": [None, 0, 20],
    "include_stop_str_in_output": [True, False],
    "ignore_eos": [True, False],
    "skip_special_tokens": [True, False],
}
NOT_NUMBERS = ["1", [1], True, math.nan, math.inf, -math.inf]
OUTSIDE: dict[str, list[Any]] = {
    "n": [0, 129, 1.0, None, *NOT_NUMBERS],
    "max_tokens": [0, -1, 2**31 + 1, 1.5, 10**400, *NOT_NUMBERS],
    "min_tokens": [-1, None, *NOT_NUMBERS],
    "temperature": [-0.1, 2.01, None, 10**400, *NOT_NUMBERS],
    "top_p": [0, 1.01, -1, None, *NOT_NUMBERS],
    "top_k": [-1, 0.5, *NOT_NUMBERS],
    "min_p": [-0.1, 1.1, *NOT_NUMBERS],
    "repetition_penalty": [0, 0.009, 1e-300, 10.1, -1, *NOT_NUMBERS],
    "presence_penalty": [-2.1, 2.1, *NOT_NUMBERS],
    "frequency_penalty": [-2.1, 2.1, *NOT_NUMBERS],
    "logit_bias": [{0: 101}, {0: -100.1}, {0: math.nan}, {0: "1"}, {0: 10**400}, {0: True}, {"0": 1}, {True: 1}, [1], "x"],
    "seed": [2**63, -(2**63) - 1, 1.0, *NOT_NUMBERS],
    "stop": ["abc", ("",), ["a", ""], (1,), None],
    "stop_token_ids": ["12", (1.0,), ("1",), (True,), 5],
    "logprobs": [-1, 21, *NOT_NUMBERS],
    "include_stop_str_in_output": [1, "true", None],
    "ignore_eos": [0, "no"],
    "skip_special_tokens": [None],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={str(value)[:20]}") for name, values in table.items() for value in values]


def test_the_tables_have_every_field() -> None:
    assert set(INSIDE) == set(OUTSIDE) == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize(("name", "value"), cases(INSIDE))
def test_values_in_range_are_kept(name: str, value: Any) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), cases(OUTSIDE))
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_an_integer_python_cannot_write_is_refused_too() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens is a very long number"):
        SamplingParams(min_tokens=10**5000)


def test_min_tokens_stay_below_max_tokens() -> None:
    SamplingParams(min_tokens=5, max_tokens=5)
    with pytest.raises(InvalidRequest, match="min_tokens is 6, more than max_tokens, 5") as caught:
        SamplingParams(min_tokens=6, max_tokens=5)
    assert caught.value.param == "min_tokens"


def test_a_field_we_do_not_have_is_no_parameter() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)  # type: ignore[call-arg]


def test_one_answer_is_one_request() -> None:
    params = SamplingParams(seed=5, temperature=0.5)
    assert params.each_choice() == [params]


def test_answers_get_seeds_of_their_own_and_the_first_keeps_it() -> None:
    choices = SamplingParams(n=4, seed=5, top_k=3).each_choice()
    assert [(choice.n, choice.top_k) for choice in choices] == [(1, 3)] * 4
    assert choices[0].seed == 5
    assert len({choice.seed for choice in choices}) == 4


def test_answers_without_a_seed_stay_without() -> None:
    assert [choice.seed for choice in SamplingParams(n=3).each_choice()] == [None] * 3


def test_derived_seeds_are_valid_and_always_the_same() -> None:
    for seed in (0, -1, 2**63 - 1, -(2**63)):
        assert SamplingParams(seed=derive_seed(seed, 127)).seed == derive_seed(seed, 127)
    assert derive_seed(5, 1) == 1_505_338_384_808_798_631
