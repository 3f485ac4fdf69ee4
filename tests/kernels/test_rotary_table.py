"""Rotary angles against the papers' formulas, one frequency at a time in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from paddle_ds.config.model import ModelConfig, RopeScaling
from paddle_ds.layers import RotaryTable


def make_config(head_dim: int = 32, theta: float = 10000.0, **scaling: Any) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        hidden_size=head_dim,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=head_dim,
        vocab_size=8,
        max_position_embeddings=4096,
        rope_theta=theta,
        rope_scaling=RopeScaling(**scaling),
    )


def plain(config: ModelConfig, pair: int) -> float:
    return config.rope_theta ** (-2 * pair / config.head_dim)


def llama3(config: ModelConfig, pair: int) -> float:
    scaling, frequency = config.rope_scaling, plain(config, pair)
    turns = (scaling.original_max_position_embeddings or 4096) * frequency / (2 * math.pi)
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    if turns > scaling.high_freq_factor:
        return frequency
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return frequency * (kept + (1 - kept) / scaling.factor)


def yarn(config: ModelConfig, pair: int) -> float:
    scaling, frequency = config.rope_scaling, plain(config, pair)
    original = scaling.original_max_position_embeddings or 4096

    def pair_that_turns(times: float) -> float:  # original * theta ** (-2 p / D) / (2 pi) = times, solved for p
        return config.head_dim / 2 * math.log(original / (2 * math.pi * times), config.rope_theta)

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    interpolated = min(max((pair - first) / (last - first), 0), 1)
    return frequency * (1 - interpolated) + frequency / scaling.factor * interpolated


VARIANTS = [
    pytest.param(make_config(), plain, id="plain"),
    pytest.param(make_config(2), plain, id="one pair"),
    pytest.param(make_config(128, 1e6), plain, id="theta 1e6"),
    pytest.param(make_config(rope_type="linear", factor=4.0), lambda c, p: plain(c, p) / 4, id="linear"),
    pytest.param(
        make_config(128, 5e5, rope_type="llama3", factor=8.0, original_max_position_embeddings=8192), llama3, id="llama3"
    ),
    pytest.param(make_config(rope_type="llama3", factor=2.0, low_freq_factor=0.5, high_freq_factor=8.0), llama3, id="llama3-own"),
    pytest.param(make_config(128, 1e6, rope_type="yarn", factor=4.0, original_max_position_embeddings=2048), yarn, id="yarn"),
    pytest.param(make_config(64, rope_type="yarn", factor=40.0, beta_fast=16.0, beta_slow=2.0), yarn, id="yarn-betas"),
    pytest.param(make_config(64, rope_type="yarn", factor=4.0, truncate=False), yarn, id="yarn-exact"),
]


@pytest.mark.parametrize(("config", "frequency"), VARIANTS)
def test_angles_are_position_times_frequency(config: ModelConfig, frequency: Any) -> None:
    positions = np.array([0, 1, 2, 17])
    cos, sin = RotaryTable(config).cos_sin(positions)
    assert cos.dtype == sin.dtype == np.float32
    angles = np.outer(positions, [frequency(config, pair) for pair in range(config.head_dim // 2)])
    np.testing.assert_allclose(np.arctan2(sin, cos), np.arctan2(np.sin(angles), np.cos(angles)), atol=5e-6)


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        ({}, 1.0),
        ({"rope_type": "linear", "factor": 4.0}, 1.0),
        ({"rope_type": "yarn", "factor": 4.0}, 0.1 * math.log(4) + 1),
        ({"rope_type": "yarn", "factor": 1.0}, 1.0),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7}, 0.7),
        (
            {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.2},
            (0.07 * math.log(40) + 1) / (0.12 * math.log(40) + 1),
        ),
        ({"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0.0}, 0.1 * math.log(40) + 1),
    ],
    ids=["plain", "linear", "yarn", "yarn by 1", "given", "mscales", "no mscale_all_dim"],
)
def test_yarn_scales_both_by_its_attention_factor(scaling: dict[str, Any], length: float) -> None:
    cos, sin = RotaryTable(make_config(**scaling)).cos_sin(np.arange(5))
    np.testing.assert_allclose(np.hypot(cos, sin), length, rtol=1e-6)


def test_far_positions_are_off_by_float32_rounding_at_most() -> None:
    config = make_config(128)
    cos, sin = RotaryTable(config).cos_sin(np.array([131071]))
    angles = np.array([131071 * plain(config, pair) for pair in range(64)])
    error = np.angle(np.exp(1j * angles) / (cos[0] + 1j * sin[0]))
    assert np.abs(error).max() < 131071 * 2**-23


def test_positions_need_not_rise() -> None:
    table = RotaryTable(make_config())
    cos, _ = table.cos_sin(np.array([5, 0, 5, 3]))
    assert (cos[0] == cos[2]).all()
    assert (cos[1] == 1).all()
