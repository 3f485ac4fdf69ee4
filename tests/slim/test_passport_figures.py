"""Arithmetic of the passport: intervals, grading, loops, divergences, budgets, and what becomes JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_ds.errors import ConfigError, QualityGateError, QuantizationError
from paddle_ds_slim.passport import EvalConfig, judge, require, write_json
from paddle_ds_slim.passport.distributions import divergence, log_softmax
from paddle_ds_slim.passport.generation import END, common_prefix
from paddle_ds_slim.passport.grading import expected_answer, is_right, loops
from paddle_ds_slim.passport.intervals import paired_difference, share
from paddle_ds_slim.passport.record import Change, Ratio
from paddle_ds_slim.recipe import Gate
from slim.passports import make_passport


@pytest.mark.parametrize(
    ("num_right", "num_items", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (20, 20, 0.8389, 1.0)],
)
def test_wilsons_interval_is_the_published_one(num_right: int, num_items: int, low: float, high: float) -> None:
    found = share(num_right, num_items)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert found.value == num_right / num_items


def test_interval_of_a_paired_difference_is_the_published_one() -> None:
    found = paired_difference(20, 12, 2, 16)
    assert (found.low, found.high) == (pytest.approx(0.0562, abs=5e-5), pytest.approx(0.3292, abs=5e-5))
    assert found.value == pytest.approx(0.2)


def test_a_paired_difference_turns_its_sign_with_the_pair_and_survives_equal_models() -> None:
    one, other = paired_difference(20, 12, 2, 16), paired_difference(20, 2, 12, 16)
    assert (other.low, other.high) == (pytest.approx(-one.high), pytest.approx(-one.low))
    same = paired_difference(40, 0, 0, 0)
    assert same.low < same.value == 0 < same.high


@pytest.mark.parametrize(
    ("written", "expected", "right"),
    [
        ("12 + 7 = 19", "19", True),
        ("The answer is 1,234.", "1234", True),
        ("12 - 19 = -7", "-7", True),
        ("答案是-7。", "-7", True),
        ("答案是 −7。", "-7", True),
        ("it is 12-7", "7", True),
        (r"\boxed{18}, though 20 was my first guess", "18", True),
        (r"the ratio is \boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
        ("$18.00", "18", True),
        ("18.5", "18", False),
        ("118", "18", False),
        ("", "18", False),
        ("Yes.", "yes", True),
        ("not yes", "yes", False),
    ],
)
def test_answers_are_right_by_value(written: str, expected: str, right: bool) -> None:
    assert is_right(written, expected) == right


def test_the_answer_stands_behind_the_mark_of_gsm8k_or_is_all_there_is() -> None:
    assert expected_answer("48/2 = <<48/2=24>>24\n#### 72") == "72"
    assert expected_answer(" 72 ") == "72"


def test_an_answer_loops_when_sixteen_tokens_stand_in_it_four_times() -> None:
    phrase = list(range(16))
    apart = [token for part in range(4) for token in (*phrase, 100 + part)]
    assert loops(apart)
    assert not loops(apart[: 3 * 17])
    assert loops([7] * 64)
    assert not loops([7] * 63)
    assert not loops(list(range(500)))


def test_common_prefix_counts_the_end_as_a_token() -> None:
    assert common_prefix((1, 2, 3), (1, 2, 4)) == 2
    assert common_prefix((1, 2, END), (1, 2, END)) == 3
    assert common_prefix((1, 2, END), (1, 2, 5)) == 2
    assert common_prefix((), (1,)) == 0


def test_divergence_is_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    one, other = log_softmax(random.normal(0, 3, (4, 50))), log_softmax(random.normal(0, 3, (4, 50)))
    p, q = np.exp(one), np.exp(other)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(divergence(one, other), (p * np.log(p / q)).sum(axis=1))
    assert np.array_equal(divergence(one, one), np.zeros(4))
    halves = log_softmax(np.array([[0.0, 0.0]]))
    assert divergence(halves, log_softmax(np.log([[0.25, 0.75]])))[0] == pytest.approx(0.5 * math.log(4 / 3))


def test_logits_that_are_no_numbers_stay_so_to_where_they_are_seen() -> None:
    bad = log_softmax(np.array([[0.0, math.nan], [math.inf, 0.0]], np.float32))
    assert np.isnan(divergence(log_softmax(np.zeros((2, 2), np.float32)), bad)).all()


def test_json_has_the_documented_keys_and_no_value_that_json_does_not_know() -> None:
    passport = make_passport(loss={"wiki": Change.of(2.0, math.nan)}, top1_agreement=math.inf)
    found = json.loads(passport.to_json())
    assert found["loss"]["wiki"] == {"reference": 2.0, "quantized": None, "increase": None}
    assert found["top1_agreement"] is None
    assert found["kl"]["mean"] == 0.004
    assert found["kl"]["histogram"] == {"edges": [1e-3, 1e-2], "counts": [20, 70, 10]}
    assert found["layers"][2] == {"name": "lm_head", "scheme": "w8a8", "weight_error": 0.006, "output_error": None}
    assert found["bytes"] == {"reference": 4_000_000, "quantized": 1_000_000, "ratio": 0.25}
    assert found["version"] == 1


def test_increases_are_relative_and_absent_without_a_reference() -> None:
    assert Change.of(1.25, 1.251).increase == pytest.approx(0.0008)
    assert Change.of(None, 1.251) == Change(None, 1.251, None)
    assert Ratio.of(None, 3.0).ratio is None


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "passport.md").read_text(encoding="utf-8")
    prose = "".join(page.split("```")[::2])
    written = {word for code in re.findall(r"`([^`]+)`", prose) for word in re.findall(r"\w+", code)}

    def keys(value: Any) -> set[str]:
        if not dataclasses.is_dataclass(value):
            items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
            return {key for item in items for key in keys(item)}
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return set(named) | {key for item in named.values() for key in keys(item)}

    assert {key for key in keys(make_passport()) if key not in written} == set()


def test_budgets_that_hold_pass() -> None:
    gate = judge(make_passport(), Gate(max_kl=0.01, max_ppl_increase=0.01, max_task_drop=0.05))
    assert gate.passed
    assert gate.budgets == {"max_kl": 0.01, "max_ppl_increase": 0.01, "max_task_drop": 0.05}
    assert gate.values["max_kl"] == 0.004
    assert gate.values["max_ppl_increase"] == pytest.approx(math.exp(0.002) - 1)
    require(gate, "model")


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        ({"max_kl": 0.003}, "the mean KL divergence is 0.004 nats; max_kl allows 0.003"),
        ({"max_ppl_increase": 0.001}, "the largest increase of perplexity is 0.002002; max_ppl_increase allows 0.001"),
        ({"max_task_drop": 0.04}, "the largest drop of exact match is 0.05; max_task_drop allows 0.04"),
    ],
)
def test_a_budget_that_is_exceeded_is_named_with_its_figures(budget: dict[str, float], complaint: str) -> None:
    gate = judge(make_passport(), Gate(**budget))
    assert (gate.passed, gate.complaints) == (False, (complaint,))
    with pytest.raises(QualityGateError, match="model is over its budget: the") as caught:
        require(gate, "model")
    assert caught.value.exit_code == 3


def test_a_figure_that_is_no_number_or_was_not_measured_holds_no_budget() -> None:
    broken = dataclasses.replace(make_passport().kl, mean=math.nan)  # type: ignore[type-var]
    assert not judge(make_passport(kl=broken), Gate(max_kl=1e9)).passed
    nan = {"good": Change.of(2.0, 2.0), "bad": Change.of(2.0, math.nan)}
    assert not judge(make_passport(perplexity=nan), Gate(max_ppl_increase=1e9)).passed
    assert "was not measured" in judge(make_passport(tasks={}), Gate(max_task_drop=1)).complaints[0]
    assert judge(make_passport(kl=None, tasks={}), Gate()).passed


def test_a_passport_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="cannot be written"):
        write_json(make_passport(), tmp_path / "absent" / "passport.json")
    write_json(make_passport(), tmp_path / "passport.json")
    assert [path.name for path in tmp_path.iterdir()] == ["passport.json"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"window_tokens": 1}, "window_tokens is 1; expected a whole number of at least 2"),
        ({"task_limit": 2.5}, "task_limit is 2.5"),
        ({"texts": {"a.b": [1, 2]}}, "'a.b' cannot name a text"),
        ({"texts": {}}, "texts is empty"),
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        EvalConfig(**wrong)
