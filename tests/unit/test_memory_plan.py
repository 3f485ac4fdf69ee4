"""Bytes, computed from inventories of tensors that do not exist."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_ds.checkpoints.base import KvScales, KvScheme, StoredTensor
from paddle_ds.config.engine import CacheConfig, EngineConfig, Quant, SchedulerConfig
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Recipe, Scheme
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.devices.base import MemoryStats
from paddle_ds.errors import ConfigError, MemoryPlanError
from paddle_ds.runtime.memory_plan import MemoryPlan, make_plan, readable_bytes, weight_bytes

R1_QWEN_1_5B = ModelConfig(
    architecture="Qwen2ForCausalLM",
    hidden_size=1536,
    intermediate_size=8960,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=131072,
    qkv_bias=True,
)
TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    hidden_size=8,
    intermediate_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=32,
    max_position_embeddings=100,
)
#: one token of TINY: a key of 4 floats, and a value padded to 16
TINY_TOKEN_BYTES = (4 + 16) * 4
GB = 10**9


def inventory(model: ModelConfig, dtype: str = "bfloat16", *, int8: bool = False) -> dict[str, StoredTensor]:
    """What a checkpoint of ``model`` would list."""
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
    stored: dict[str, StoredTensor] = {}
    for spec in model_specs(model):
        quantised = int8 and spec.role is Role.LINEAR
        nbytes = spec.num_elements + spec.shape[0] * width if quantised else spec.num_elements * width
        stored[spec.name] = StoredTensor(spec.name, spec.shape, "int8" if quantised else dtype, nbytes, Path("model.safetensors"))
    return stored


def weights_of(model: ModelConfig, quant: Quant, **stored: Any) -> dict[str, int]:
    held: dict[str, Scheme] = {
        spec.name.removesuffix(".weight"): "w8a8"
        for spec in model_specs(model)
        if stored.get("int8", False) and spec.role is Role.LINEAR
    }
    return weight_bytes(model, Recipe(quant, held), inventory(model, **stored))


def plan_of(
    model: ModelConfig = TINY, available_bytes: int = 4 * GB, kv_scheme: KvScheme | None = None, **engine: Any
) -> MemoryPlan:
    config = EngineConfig(**engine)
    return make_plan(model, Recipe("auto"), inventory(model), config, MemoryStats(64 * GB, available_bytes), kv_scheme)


EMBEDDING = 151936 * 1536
LINEARS = 28 * (2 * 1536 * 1536 + 2 * 256 * 1536 + 3 * 8960 * 1536)
NORMS_AND_BIASES = 4 * (57 * 1536 + 28 * (1536 + 2 * 256))
SCALES = 4 * 28 * (1536 + 2 * 256 + 1536 + 2 * 8960 + 1536)


@pytest.mark.parametrize(
    ("quant", "int8", "expected"),
    [
        (
            "w8a8",
            False,
            {"bfloat16": 2 * EMBEDDING, "int8": LINEARS + EMBEDDING, "float32": NORMS_AND_BIASES + SCALES + 4 * 151936},
        ),
        ("none", False, {"bfloat16": 2 * (LINEARS + 2 * EMBEDDING), "float32": NORMS_AND_BIASES}),
        ("auto", True, {"bfloat16": 4 * EMBEDDING, "int8": LINEARS, "float32": NORMS_AND_BIASES + SCALES}),
        ("none", True, {"bfloat16": 4 * EMBEDDING, "float32": 4 * LINEARS + NORMS_AND_BIASES}),
    ],
)
def test_weights_of_the_distilled_qwen(quant: Quant, int8: bool, expected: dict[str, int]) -> None:
    assert weights_of(R1_QWEN_1_5B, quant, int8=int8) == expected


@pytest.mark.parametrize("quant", ["auto", "w8a16"])
def test_other_names_for_int8_take_the_same_room(quant: Quant) -> None:
    assert weights_of(R1_QWEN_1_5B, quant) == weights_of(R1_QWEN_1_5B, "w8a8")


def test_a_tied_head_is_counted_where_it_becomes_a_copy() -> None:
    tied = dataclasses.replace(TINY, tie_word_embeddings=True)
    table = 32 * 8
    for dtype, width, copy in (("float32", 4, 0), ("bfloat16", 2, 0), ("float16", 2, 4 * table)):
        alone, untied = weights_of(tied, "none", dtype=dtype), weights_of(TINY, "none", dtype=dtype)
        head = width * table if dtype != "float16" else 4 * table  # no dense layer multiplies by float16
        assert sum(untied.values()) - sum(alone.values()) == head - copy
    assert weights_of(tied, "w8a8", dtype="float32")["int8"] == weights_of(tied, "w8a8", int8=True)["int8"]


def test_layers_left_alone_are_counted_in_floating_point() -> None:
    recipe = Recipe("w8a8", {}, frozenset({"lm_head"}))
    left_alone = weight_bytes(TINY, recipe, inventory(TINY))
    assert left_alone["int8"] == weights_of(TINY, "w8a8")["int8"] - 32 * 8


def test_the_cache_holds_float32_keys_and_values_of_all_layers() -> None:
    elements = 2 * 28 * 2 * 128
    for dtype, expected in (("float32", 4 * elements), ("bfloat16", 2 * elements), ("int8", elements + 2 * 28 * 2 * 4)):
        assert plan_of(R1_QWEN_1_5B, 64 * GB, cache=CacheConfig(dtype=dtype)).kv_bytes_per_token == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("stored", "expected"), [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "float32")])
def test_the_cache_is_as_exact_as_the_checkpoint(stored: str, expected: str) -> None:
    assert plan_of(dataclasses.replace(TINY, stored_dtype=stored)).kv_dtype == expected
    assert plan_of(dataclasses.replace(TINY, stored_dtype=stored), cache=CacheConfig(dtype="int8")).kv_dtype == "int8"


STATIC = KvScheme((KvScales(np.ones(1, np.float32), np.ones(1, np.float32)),))


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize(("kv_scheme", "scales"), [(KvScheme(None), "dynamic"), (STATIC, "static")], ids=["dynamic", "static"])
def test_a_checkpoint_made_for_an_int8_cache_gets_one(kv_scheme: KvScheme, scales: str, stored: str) -> None:
    plan = plan_of(dataclasses.replace(TINY, stored_dtype=stored), kv_scheme=kv_scheme)
    assert (plan.kv_dtype, plan.kv_scales, plan.checkpoint_kv_dtype) == ("int8", scales, "int8")
    asked_for = plan_of(cache=CacheConfig(dtype="int8"))
    assert plan.kv_bytes_per_token == asked_for.kv_bytes_per_token
    assert (asked_for.kv_scales, asked_for.checkpoint_kv_dtype) == ("dynamic", None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_that_is_asked_for_wins_over_the_checkpoints(dtype: Any) -> None:
    plan = plan_of(kv_scheme=STATIC, cache=CacheConfig(dtype=dtype))
    assert (plan.kv_dtype, plan.kv_scales, plan.checkpoint_kv_dtype) == (dtype, None, "int8")
    assert plan.kv_bytes_per_token == plan_of(cache=CacheConfig(dtype=dtype)).kv_bytes_per_token


def test_int8_that_is_asked_for_has_the_checkpoints_scales() -> None:
    assert plan_of(kv_scheme=STATIC, cache=CacheConfig(dtype="int8")).kv_scales == "static"


def test_a_token_of_a_small_head_is_counted_with_its_padding() -> None:
    assert plan_of().kv_bytes_per_token == TINY_TOKEN_BYTES


def test_parts_add_up() -> None:
    plan = plan_of(R1_QWEN_1_5B, 16 * GB)
    assert plan.kv_bytes == plan.kv_tokens * plan.kv_bytes_per_token
    fixed = plan.base_bytes + sum(plan.weight_bytes.values())
    assert plan.total_bytes == fixed + max(plan.load_bytes, plan.kv_bytes + plan.activation_bytes)
    assert plan.total_bytes <= plan.available_bytes == 16 * GB


def test_loading_holds_the_largest_layer_three_times() -> None:
    head = 3 * EMBEDDING + (32 << 20)
    assert plan_of(R1_QWEN_1_5B, 16 * GB).load_bytes == head
    dense = make_plan(R1_QWEN_1_5B, Recipe("none"), inventory(R1_QWEN_1_5B), EngineConfig(), MemoryStats(64 * GB, 64 * GB))
    assert dense.load_bytes == 4 * 3 * EMBEDDING + (32 << 20)


@pytest.mark.parametrize(
    ("changes", "elements"),
    [
        ({"intermediate_size": 1000}, 2 * 1000 * 8),
        ({"num_heads": 200, "num_kv_heads": 100}, (200 + 2 * 100) * 4 * 8),
        ({"vocab_size": 5000, "tie_word_embeddings": True}, 5000 * 8),
    ],
    ids=["gate and up", "q, k and v", "tied head"],
)
def test_stacked_layers_are_loaded_together(changes: dict[str, Any], elements: int) -> None:
    assert plan_of(dataclasses.replace(TINY, **changes)).load_bytes == 3 * elements + (32 << 20)


def test_the_cache_takes_half_of_what_is_left() -> None:
    plan = plan_of(R1_QWEN_1_5B, 8 * GB)
    left = 8 * GB - plan.base_bytes - sum(plan.weight_bytes.values()) - plan.activation_bytes
    assert left // 2 - 16 * plan.kv_bytes_per_token < plan.kv_bytes <= left // 2


def test_the_cache_is_no_larger_than_every_request_at_full_length() -> None:
    plan = plan_of(scheduler=SchedulerConfig(max_running_requests=3))
    assert plan.num_blocks == 3 * 7
    assert plan.max_context_tokens == 100


def test_the_context_is_what_the_model_was_made_for() -> None:
    plan = plan_of(R1_QWEN_1_5B, 64 * GB)
    assert (plan.max_context_tokens, plan.model_context_tokens, plan.requested_context_tokens) == (131072, 131072, None)


def test_the_context_is_limited_by_the_cache_where_nobody_asked() -> None:
    plan = plan_of(R1_QWEN_1_5B, 5 * GB)
    assert plan.max_context_tokens == plan.kv_tokens < plan.model_context_tokens


def test_a_requested_context_may_take_more_than_half() -> None:
    limited = plan_of(R1_QWEN_1_5B, 5 * GB).max_context_tokens
    plan = plan_of(R1_QWEN_1_5B, 5 * GB, max_context_tokens=limited * 3 // 2 + 1)
    assert plan.max_context_tokens == plan.requested_context_tokens == limited * 3 // 2 + 1


@pytest.mark.parametrize("context_tokens", [1, 15, 16, 17, 99, 100])
def test_a_requested_context_is_rounded_up_to_blocks(context_tokens: int) -> None:
    smallest = plan_of(cache=CacheConfig(max_tokens=1))
    room = smallest.total_bytes - smallest.kv_bytes + -(-context_tokens // 16) * 16 * TINY_TOKEN_BYTES
    plan = plan_of(available_bytes=room, max_context_tokens=context_tokens)
    assert plan.max_context_tokens == context_tokens


def test_a_requested_context_that_does_not_fit_is_an_error_with_the_figures() -> None:
    smallest = plan_of(cache=CacheConfig(max_tokens=1))
    room = smallest.total_bytes - smallest.kv_bytes + 5 * 16 * TINY_TOKEN_BYTES
    with pytest.raises(MemoryPlanError, match="max_context_tokens is 99, but the KV cache holds 80 tokens"):
        plan_of(available_bytes=room, max_context_tokens=99)


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_context_tokens is 101, but the model was made for 100"):
        plan_of(max_context_tokens=101)


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (16, 1), (17, 2), (50, 4)])
def test_cache_tokens_are_rounded_up_to_blocks(tokens: int, blocks: int) -> None:
    plan = plan_of(cache=CacheConfig(max_tokens=tokens))
    assert (plan.num_blocks, plan.max_context_tokens) == (blocks, min(100, blocks * 16))


@pytest.mark.parametrize(("num_bytes", "blocks"), [(1280, 1), (2559, 1), (2560, 2), (12799, 9)])
def test_cache_bytes_are_never_exceeded(num_bytes: int, blocks: int) -> None:
    plan = plan_of(cache=CacheConfig(max_bytes=num_bytes))
    assert plan.num_blocks == blocks
    assert plan.kv_bytes <= num_bytes


def test_cache_bytes_below_one_block_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cache\.max_bytes is 1279; one block of 16 tokens takes 1280"):
        plan_of(cache=CacheConfig(max_bytes=1279))


def test_a_context_longer_than_the_requested_cache_is_an_error() -> None:
    with pytest.raises(MemoryPlanError, match="max_context_tokens is 100, but the KV cache holds 48 tokens"):
        plan_of(cache=CacheConfig(max_tokens=48), max_context_tokens=100)


@pytest.mark.parametrize("available_bytes", [0, 10**6, 1 * GB])
def test_too_little_memory_is_an_error_with_the_figures(available_bytes: int) -> None:
    figures = r"needs \d.* GB \(Paddle 419\.4 MB, weights 2\.0 GB, beside them 7.* MB to load or .* of KV cache .* is available"
    with pytest.raises(MemoryPlanError, match=figures):
        plan_of(R1_QWEN_1_5B, available_bytes)


def test_a_cache_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(MemoryPlanError, match=r"lower max_context_tokens or cache\.max_tokens"):
        plan_of(R1_QWEN_1_5B, 8 * GB, cache=CacheConfig(max_tokens=1_000_000))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (2 * GB, "2.0 GB"),
        (5000 * GB, "5000.0 GB"),
        (-2000, "-2.0 kB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert readable_bytes(count) == text
