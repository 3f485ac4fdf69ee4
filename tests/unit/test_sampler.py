"""From logits to tokens, against formulas written the long way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_runner import make_request
from paddle_ds.errors import InternalError
from paddle_ds.kernels import candidates
from paddle_ds.runtime.sampler import Sampler, uniform
from paddle_ds.sched import Request, SampledToken

Rows = npt.NDArray[np.float32]
R1_VOCABULARY = 151936


def request_with(*, output: tuple[int, ...] = (), **options: Any) -> Request:
    """A request that has sampled ``output`` so far."""
    request = make_request(options.pop("request_id", "a"), options.pop("prompt", [0]), **options)
    request.token_ids += output
    return request


def top_ids(row: Rows, count: int) -> Rows:
    return candidates.reference(paddle.to_tensor(row[None]), len(row), np.ones(1, np.float32), count).ids[0]


def sample(row: Any, **options: Any) -> SampledToken:
    logits = np.asarray(row, np.float32)
    return Sampler(len(logits)).sample(paddle.to_tensor(logits[None]), [request_with(**options)])[0]


def random_row(size: int, scale: float = 3.0, seed: int = 0) -> Rows:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def oracle(row: Rows, options: dict[str, Any]) -> dict[int, float]:
    """Probabilities after truncation, by sorting everything, most probable first."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    peak = float(row[order[0]])
    weights = {i: math.exp((float(row[i]) - peak) / options.get("temperature", 1.0)) for i in order}
    if options.get("top_k"):
        weights = dict(list(weights.items())[: options["top_k"]])
    total, so_far = sum(weights.values()), 0.0
    kept: dict[int, float] = {}
    for i, weight in weights.items():
        if options.get("top_p", 1) < 1 and so_far >= options["top_p"] * total:
            break
        if weight < options.get("min_p", 0.0):
            break
        kept[i] = weight
        so_far += weight
    return {i: weight / so_far for i, weight in kept.items()}


# ---- greedy


@pytest.mark.parametrize(("row", "token_id"), [([0.0], 0), ([1, 3, 2], 1), ([-5, -1], 1)])
def test_greedy_takes_the_largest(row: list[float], token_id: int) -> None:
    assert sample(row, temperature=0) == SampledToken(token_id)


@pytest.mark.parametrize("temperature", [0, 1e-6, 5e-324])
def test_no_and_hardly_any_temperature_agree(temperature: float) -> None:
    assert sample([1.0, 1.5, 1.25], temperature=temperature).token_id == 1


def test_greedy_ties_go_to_the_lowest_id() -> None:
    assert sample([1, 7, 7, 7], temperature=0).token_id == 1


def test_top_ids_fall_and_ties_rise() -> None:
    assert top_ids(np.array([1, 3, 2, 3, 2], np.float32), 4).tolist() == [1, 3, 2, 4]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 40))
@settings(deadline=None)
def test_top_ids_are_the_head_of_a_stable_sort(values: list[int], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert top_ids(np.array(values, np.float32), min(count, len(values))).tolist() == expected


# ---- drawing


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    row, num_draws = random_row(8, 1.0), 2000
    drawn = np.bincount([sample(row, seed=seed, temperature=temperature).token_id for seed in range(num_draws)], minlength=8)
    expected = np.array([p for _, p in sorted(oracle(row, {"temperature": temperature}).items())]) * num_draws
    assert float(((drawn - expected) ** 2 / expected).sum()) < 24.3  # 99.9th percentile of chi-square with 7 degrees


@pytest.mark.parametrize("size", [1, 2, 1500, 5000])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 10**9},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"top_p": 0.999999},
        {"top_p": 1e-9},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"min_p": 1e-7},
        {"top_p": 0.9, "min_p": 0.2},
        {"top_p": 0.99, "min_p": 1e-6},
        {"top_k": 1200, "top_p": 0.9, "min_p": 0.001, "temperature": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [3.0, 0.01], ids=["peaked", "flat"])
def test_truncated_draws_agree_with_a_full_sort(size: int, options: dict[str, Any], scale: float) -> None:
    row = random_row(size, scale, seed=size)
    probabilities = oracle(row, options)
    cumulative = np.cumsum(list(probabilities.values()))
    for seed in range(4):
        position = int(np.searchsorted(cumulative, uniform(request_with(seed=seed)), side="right"))
        assert sample(row, seed=seed, **options).token_id == list(probabilities)[position]


def test_top_p_reaches_beyond_the_usual_candidates() -> None:
    row = np.zeros(5000, np.float32)
    drawn = {sample(row, seed=seed, top_p=0.5).token_id for seed in range(300)}
    assert 2000 < max(drawn) < 2500


def test_a_token_on_the_edge_of_top_p_is_kept() -> None:
    row = np.log(np.array([0.5, 0.3, 0.2]))
    drawn = {sample(row, seed=seed, top_p=0.6).token_id for seed in range(50)}
    assert drawn == {0, 1}


def test_a_set_that_reaches_top_p_exactly_is_enough() -> None:
    assert {sample([0, 0, 0, 0], seed=seed, top_p=0.5).token_id for seed in range(50)} == {0, 1}


def test_a_huge_logit_leaves_no_room_for_others() -> None:
    assert {sample([1e30, 0, -1e30], seed=seed).token_id for seed in range(20)} == {0}


# ---- penalties, bias, held-back ids

BASE = [2.0, -1.0, 0.5, 0.0, -3.0]


def best_after(adjusted: list[float]) -> int:
    return int(np.argmax(adjusted))


@pytest.mark.parametrize("penalty", [0.01, 0.5, 1.3, 5.0, 10.0])
def test_repetition_penalty_counts_prompt_and_answer(penalty: float) -> None:
    adjusted = list(BASE)
    for token_id in (0, 1, 4):
        adjusted[token_id] = BASE[token_id] / penalty if BASE[token_id] > 0 else BASE[token_id] * penalty
    token = sample(BASE, prompt=[0, 1, 1], output=(4, 0), repetition_penalty=penalty, temperature=0)
    assert token.token_id == best_after(adjusted)


@pytest.mark.parametrize("presence", [-2.0, 0.0, 0.7, 2.0])
@pytest.mark.parametrize("frequency", [-2.0, 0.0, 0.6, 2.0])
def test_presence_and_frequency_count_the_answer_only(presence: float, frequency: float) -> None:
    adjusted = list(BASE)
    for token_id, count in ((2, 1), (0, 3), (3, 2)):
        adjusted[token_id] -= presence + frequency * count
    options = {"presence_penalty": presence, "frequency_penalty": frequency}
    token = sample(BASE, prompt=[1, 1, 4], output=(0, 2, 0, 3, 0, 3), temperature=0, **options)
    assert token.token_id == best_after(adjusted)


def test_penalties_change_the_odds_as_the_formulas_say() -> None:
    options = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {4: 3.0}}
    adjusted = np.array([2 / 1.5 - 0.5 - 0.25 * 2, -1 * 1.5, 0.5, 0.0, -3 + 3.0], np.float32)
    probabilities = [p for _, p in sorted(oracle(adjusted, {}).items())]
    for seed in range(200):
        request = request_with(prompt=[1], output=(0, 0), seed=seed, **options)
        expected = int(np.searchsorted(np.cumsum(probabilities), uniform(request), side="right"))
        assert Sampler(5).sample(paddle.to_tensor(np.array([BASE], np.float32)), [request])[0].token_id == expected


def test_penalties_leave_a_fresh_request_alone() -> None:
    assert sample(BASE, prompt=[4], presence_penalty=2, frequency_penalty=2, temperature=0).token_id == 0


@pytest.mark.parametrize(("bias", "token_id"), [({4: 100.0}, 4), ({0: -100.0}, 2), ({1: 2.9}, 0), ({1: 3.1}, 1)])
def test_bias_is_added(bias: dict[int, float], token_id: int) -> None:
    assert sample(BASE, logit_bias=bias, temperature=0).token_id == token_id


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_k": 5}, {"seed": 3, "top_p": 0.9}], ids=str
)
def test_ids_that_would_end_too_early_are_never_drawn(options: dict[str, Any]) -> None:
    token = sample([9, 9, 9, -9], end_ids=[0, 1, 2, 7, -1], min_tokens=2, **options)
    assert token.token_id == 3


def test_end_ids_are_free_once_min_tokens_exist() -> None:
    assert sample([9, 0], end_ids=[0], min_tokens=1, output=(1,), temperature=0).token_id == 0


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 1}, {"seed": 1, "top_k": 1}, {"min_p": 0.5}], ids=str)
def test_holding_back_every_id_holds_back_none(options: dict[str, Any]) -> None:
    assert sample([1, 50], end_ids=[0, 1], min_tokens=3, **options).token_id == 1


def test_adjusting_one_row_leaves_the_logits_as_they_were() -> None:
    logits = np.array([BASE, BASE], np.float32)
    Sampler(5).sample(paddle.to_tensor(logits), [request_with(logit_bias={0: -100.0}), request_with(temperature=0)])
    assert logits.tolist() == [BASE, BASE]


# ---- seeds


@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"top_p": 0.9}, {"temperature": 0.5, "min_p": 0.01}], ids=str)
def test_a_request_gets_the_same_token_in_every_company(options: dict[str, Any]) -> None:
    logits = np.stack([random_row(50, seed=i) for i in range(6)])
    requests = [request_with(seed=i, request_id=str(i), **options) for i in range(6)]
    together = Sampler(50).sample(paddle.to_tensor(logits), requests)
    backwards = Sampler(50).sample(paddle.to_tensor(logits[::-1].copy()), requests[::-1])[::-1]
    alone = [Sampler(50).sample(paddle.to_tensor(logits[i : i + 1]), requests[i : i + 1])[0] for i in range(6)]
    assert together == backwards == alone


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    at_two = [uniform(request_with(prompt=prompt, output=(5, 5), seed=3)) for prompt in ([1], [1, 2, 3])]
    at_three = uniform(request_with(output=(5, 5, 5), seed=3))
    assert at_two[0] == at_two[1] != at_three


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_every_seed_of_64_bits_draws(seed: int) -> None:
    assert 0 <= uniform(request_with(seed=seed)) < 1


def test_seeds_differ_from_one_another() -> None:
    seeds = [0, 1, 2, -1, -2, 2**63 - 1, -(2**63), 2**32, 2**32 + 1]
    assert len({uniform(request_with(seed=seed)) for seed in seeds}) == len(seeds)


def test_positions_of_one_seed_spread_evenly() -> None:
    request = request_with(seed=12)
    numbers = []
    for _ in range(2000):
        numbers.append(uniform(request))
        request.token_ids.append(0)
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert float(((counts - 200) ** 2 / 200).sum()) < 27.9  # 99.9th percentile of chi-square with 9 degrees


# ---- log probabilities


def log_softmax(row: Rows) -> list[float]:
    peak = max(map(float, row))
    total = peak + math.log(math.fsum(math.exp(float(x) - peak) for x in row))
    return [float(x) - total for x in row]


@pytest.mark.parametrize("size", [1, 2, 300, R1_VOCABULARY])
def test_log_probabilities_are_of_the_whole_distribution(size: int) -> None:
    row = random_row(size)
    expected = log_softmax(row)
    best = np.argsort(-row, kind="stable")[:5]
    token = sample(row, logprobs=5, temperature=0)
    assert token.logprob == pytest.approx(expected[int(best[0])], abs=1e-9)
    assert [i for i, _ in token.top] == best.tolist()
    assert [p for _, p in token.top] == pytest.approx([expected[int(i)] for i in best], abs=1e-9)


def test_log_probabilities_are_those_before_bias_penalties_and_truncation() -> None:
    token = sample(BASE, logprobs=2, temperature=0.1, top_k=1, logit_bias={4: 100.0}, repetition_penalty=2.0, prompt=[0])
    expected = log_softmax(np.array(BASE, np.float32))
    assert token.token_id == 4
    assert token.logprob == pytest.approx(expected[4])
    assert token.top == (pytest.approx((0, expected[0])), pytest.approx((2, expected[2])))


@pytest.mark.parametrize(("asked", "given"), [(None, (False, 0)), (0, (True, 0)), (3, (True, 3)), (20, (True, 5))])
def test_as_many_alternatives_as_asked_for(asked: int | None, given: tuple[bool, int]) -> None:
    token = sample(BASE, logprobs=asked, temperature=0)
    assert (token.logprob is not None, len(token.top)) == given


def test_log_probabilities_do_not_change_the_token() -> None:
    row = random_row(200)
    assert [sample(row, seed=s).token_id for s in range(20)] == [sample(row, seed=s, logprobs=1).token_id for s in range(20)]


# ---- vocabulary and broken rows


@pytest.mark.parametrize("num_tokens", [1, 2, 151665])
@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}, {"presence_penalty": 1.0}], ids=str
)
def test_padding_is_never_sampled_however_large(num_tokens: int, options: dict[str, Any]) -> None:
    logits = np.full((1, R1_VOCABULARY), 1e4, np.float32)
    logits[0, :num_tokens] = random_row(num_tokens)
    token = Sampler(num_tokens).sample(paddle.to_tensor(logits), [request_with(logprobs=20, **options)])[0]
    assert token.token_id < num_tokens
    assert all(token_id < num_tokens for token_id, _ in token.top)


def test_padding_may_hold_anything() -> None:
    logits = np.array([[1.0, 2.0, np.nan, np.inf]], np.float32)
    assert Sampler(2).sample(paddle.to_tensor(logits), [request_with(temperature=0)])[0].token_id == 1


@pytest.mark.parametrize("broken", [[np.nan, 1], [1, np.nan], [np.inf, 1], [-np.inf, -np.inf]], ids=str)
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_row_that_is_not_finite_names_its_request(broken: list[float], temperature: float) -> None:
    requests = [request_with(request_id=name, temperature=temperature) for name in ("good", "bad")]
    with pytest.raises(InternalError, match=r"not finite for request bad$"):
        Sampler(2).sample(paddle.to_tensor(np.array([[1, 2], broken], np.float32)), requests)


def test_all_broken_rows_are_named() -> None:
    requests = [request_with(request_id=name) for name in "abc"]
    with pytest.raises(InternalError, match=r"request a, c$"):
        Sampler(1).sample(paddle.to_tensor(np.array([[np.nan], [0], [np.inf]], np.float32)), requests)


def test_an_impossible_id_is_only_impossible() -> None:
    assert {sample([0, -np.inf, 0], seed=seed).token_id for seed in range(30)} == {0, 2}
