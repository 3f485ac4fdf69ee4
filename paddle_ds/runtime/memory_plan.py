"""What a model will take in memory, computed from the checkpoint's inventory before a single weight is read. No paddle."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Literal

from paddle_ds.checkpoints.base import KvScheme, StoredTensor
from paddle_ds.config.engine import EngineConfig, KvDtype
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Recipe, Scheme
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.devices.base import MemoryStats
from paddle_ds.errors import ConfigError, MemoryPlanError

#: resident memory of a process that has loaded Paddle and nothing else, rounded up from 330 MB measured
_BASE_BYTES = 400 << 20
#: share of the memory left after the weights that the KV cache takes where nobody says otherwise
_CACHE_SHARE = 0.5
_FLOAT_BYTES = 4
_KV_WIDTHS = {"float32": 4, "bfloat16": 2, "int8": 1}
#: blocks of a floating-point weight that are widened, divided and rounded at a time
_ROUNDING_BYTES = 32 << 20
#: the reference operators' temporaries: converted weights, their slices, gathered keys and values, attention scores
_OPERATOR_TEMPORARY_BYTES = 320 << 20


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose, and the limits that follow from them."""

    weight_bytes: dict[str, int]
    kv_bytes: int
    activation_bytes: int
    load_bytes: int
    base_bytes: int
    num_blocks: int
    block_tokens: int
    kv_dtype: KvDtype
    #: where the scales of ``int8`` come from: each token and head finds its own, or the checkpoint has them; else ``None``
    kv_scales: Literal["dynamic", "static"] | None
    #: what the checkpoint was made for; ``None`` where it says nothing. ``kv_dtype`` is another one only if that was asked for
    checkpoint_kv_dtype: KvDtype | None
    kv_bytes_per_token: int
    #: what was asked for; ``None`` where nothing was
    requested_context_tokens: int | None
    #: what requests are held to
    max_context_tokens: int
    model_context_tokens: int
    available_bytes: int

    @property
    def total_bytes(self) -> int:
        """Most resident memory while serving. Loading needs its temporaries before the cache and activations exist."""
        fixed = self.base_bytes + sum(self.weight_bytes.values())
        return fixed + max(self.load_bytes, self.kv_bytes + self.activation_bytes)

    def with_blocks(self, num_blocks: int) -> MemoryPlan:
        """The same with a cache of ``num_blocks``: for a device that turned out to have less memory than it said."""
        tokens = num_blocks * self.block_tokens
        return dataclasses.replace(
            self,
            num_blocks=num_blocks,
            kv_bytes=tokens * self.kv_bytes_per_token,
            max_context_tokens=min(self.requested_context_tokens or self.model_context_tokens, tokens),
        )

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.block_tokens


def make_plan(
    model: ModelConfig,
    recipe: Recipe,
    stored: Mapping[str, StoredTensor],
    engine: EngineConfig,
    memory: MemoryStats,
    kv_scheme: KvScheme | None = None,
    base_bytes: int = _BASE_BYTES,
) -> MemoryPlan:
    """Plan the memory of ``model`` loaded from ``stored`` under ``engine``.

    Args:
        kv_scheme: the cache that the checkpoint was made for, where it says so.
        base_bytes: what a process with Paddle takes of ``memory`` before a model is loaded.

    Raises:
        MemoryPlanError: it does not fit; the message has the figures.
        ConfigError: the requested context is longer than the model or the requested cache allows.
    """
    weights = weight_bytes(model, recipe, stored)
    dtype = kv_dtype(model, engine, kv_scheme)
    has_static_scales = kv_scheme is not None and kv_scheme.scales is not None
    per_token = kv_bytes_per_token(model, dtype)
    wanted = engine.max_context_tokens or model.max_position_embeddings
    if wanted > model.max_position_embeddings:
        raise ConfigError(f"max_context_tokens is {wanted}, but the model was made for {model.max_position_embeddings}")
    activations = _activation_bytes(model, engine)
    fixed = base_bytes + sum(weights.values()) + activations
    load = _load_bytes(model, recipe, stored)
    free = memory.available_bytes - fixed
    block = engine.cache.block_tokens
    num_blocks = _num_blocks(engine, wanted, per_token, free)
    plan = MemoryPlan(
        weight_bytes=weights,
        kv_bytes=num_blocks * block * per_token,
        activation_bytes=activations,
        load_bytes=load,
        base_bytes=base_bytes,
        num_blocks=num_blocks,
        block_tokens=block,
        kv_dtype=dtype,
        kv_scales=None if dtype != "int8" else "static" if has_static_scales else "dynamic",
        checkpoint_kv_dtype=None if kv_scheme is None else "int8",
        kv_bytes_per_token=per_token,
        requested_context_tokens=engine.max_context_tokens,
        max_context_tokens=min(wanted, num_blocks * block),
        model_context_tokens=model.max_position_embeddings,
        available_bytes=memory.available_bytes,
    )
    _check(plan, engine, wanted)
    return plan


def _check(plan: MemoryPlan, engine: EngineConfig, wanted_tokens: int) -> None:
    if plan.num_blocks < 1 or plan.total_bytes > plan.available_bytes:
        raise MemoryPlanError(
            f"the model needs {readable_bytes(plan.total_bytes)} (Paddle {readable_bytes(plan.base_bytes)}, weights "
            f"{readable_bytes(sum(plan.weight_bytes.values()))}, beside them {readable_bytes(plan.load_bytes)} to load or "
            f"{readable_bytes(plan.kv_bytes)} of KV cache with {readable_bytes(plan.activation_bytes)} of activations), "
            f"and {readable_bytes(plan.available_bytes)} is available. "
            "Quantise to w8a8, lower max_context_tokens or cache.max_tokens, or use a smaller model."
        )
    if engine.max_context_tokens is not None and plan.kv_tokens < wanted_tokens:
        raise MemoryPlanError(
            f"max_context_tokens is {wanted_tokens}, but the KV cache holds {plan.kv_tokens} tokens "
            f"({readable_bytes(plan.kv_bytes)}); lower it, or give the cache more by cache.max_tokens or cache.max_bytes"
        )


def kv_dtype(model: ModelConfig, engine: EngineConfig, kv_scheme: KvScheme | None) -> KvDtype:
    """What the cache holds: what ``engine`` asks for, else what the checkpoint was made for, else as exact as its tensors."""
    if engine.cache.dtype != "auto":
        return engine.cache.dtype
    if kv_scheme is not None:
        return "int8"
    return "float32" if model.stored_dtype == "float32" else "bfloat16"


def kv_bytes_per_token(model: ModelConfig, dtype: KvDtype) -> int:
    """Keys and values of one token in all layers; the compiled operators pad a head's values to a multiple of 16 elements."""
    padded_dim = -(-model.head_dim // 16) * 16
    head = (model.head_dim + padded_dim) * _KV_WIDTHS[dtype] + (2 * _FLOAT_BYTES if dtype == "int8" else 0)
    return model.num_layers * model.num_kv_heads * head


def _num_blocks(engine: EngineConfig, context_tokens: int, per_token: int, free_bytes: int) -> int:
    cache = engine.cache
    per_block = cache.block_tokens * per_token
    if cache.max_tokens is not None:
        return -(-cache.max_tokens // cache.block_tokens)
    if cache.max_bytes is not None:
        if cache.max_bytes < per_block:
            raise ConfigError(f"cache.max_bytes is {cache.max_bytes}; one block of {cache.block_tokens} tokens takes {per_block}")
        return cache.max_bytes // per_block
    one_request = -(-context_tokens // cache.block_tokens)
    share = int(free_bytes * _CACHE_SHARE) // per_block
    if engine.max_context_tokens is not None:
        share = max(share, min(one_request, free_bytes // per_block))
    return max(0, min(share, engine.scheduler.max_running_requests * one_request))


def weight_bytes(model: ModelConfig, recipe: Recipe, stored: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Bytes of the parameters once loaded, by dtype."""
    total: dict[str, int] = {}

    def add(dtype: str, count: int) -> None:
        total[dtype] = total.get(dtype, 0) + count

    for spec in model_specs(model):
        if spec.role in (Role.NORM, Role.BIAS):
            add("float32", spec.num_elements * _FLOAT_BYTES)
        elif spec.role is Role.EMBEDDING:
            add(stored[spec.name].dtype, stored[spec.name].nbytes)
        else:
            prefix = spec.name.removesuffix(".weight")
            _add_linear(add, recipe.scheme(prefix), spec.shape, stored[spec.name])
    if model.tie_word_embeddings:
        shape = (model.vocab_size, model.hidden_size)
        table = stored["model.embed_tokens.weight"]
        scheme = recipe.scheme("lm_head")
        # a table serves as embedding and head at once, but for float16, which no dense layer multiplies by
        if scheme != "dense" or table.dtype == "float16":
            _add_linear(add, scheme, shape, table)
    return total


def _add_linear(add: Callable[[str, int], None], scheme: Scheme, shape: tuple[int, ...], stored: StoredTensor) -> None:
    num_out, num_in = shape
    elements = num_out * num_in
    if scheme == "dense" and stored.dtype == "bfloat16":
        add("bfloat16", 2 * elements)
    elif scheme == "dense":
        add("float32", elements * _FLOAT_BYTES)
    elif stored.groups is not None and scheme == ("w4a16" if stored.dtype == "int4" else "w8a16"):
        add(stored.dtype, num_out * -(-num_in // 2) if stored.dtype == "int4" else elements)
        add("float32", num_out * stored.groups.count * 2 * _FLOAT_BYTES)  # scales, and at most as many zero points
    else:
        add("int8", elements)
        add("float32", num_out * _FLOAT_BYTES)


def _activation_bytes(model: ModelConfig, engine: EngineConfig) -> int:
    tokens = engine.scheduler.max_batch_tokens
    widths = 4 * model.hidden_size + 3 * (model.q_size + 2 * model.kv_size) + 5 * model.intermediate_size
    logits = 3 * engine.scheduler.max_running_requests * model.vocab_size
    return (tokens * widths + logits) * _FLOAT_BYTES + _OPERATOR_TEMPORARY_BYTES


def _load_bytes(model: ModelConfig, recipe: Recipe, stored: Mapping[str, StoredTensor]) -> int:
    """Loading holds one stacked layer three times: pieces, stack, and the operator's copy. INT8 is rounded block by block."""
    stacks: dict[str, int] = {}
    for spec in model_specs(model):
        if spec.role in (Role.LINEAR, Role.HEAD):
            prefix = spec.name.removesuffix(".weight")
            scheme = recipe.scheme(prefix)
            stack = re.sub("[kv]_proj$", "q_proj", prefix).replace("up_proj", "gate_proj")
            # a weight with groups that is rounded anew is there as float32 in between
            width = _FLOAT_BYTES if stored[spec.name].groups else _loaded_width(scheme)
            stacks[stack] = stacks.get(stack, 0) + spec.num_elements * width
    if model.tie_word_embeddings:
        width = _loaded_width(recipe.scheme("lm_head"))
        stacks["lm_head"] = model.vocab_size * model.hidden_size * width
    return 3 * max(stacks.values()) + _ROUNDING_BYTES


def _loaded_width(scheme: Scheme) -> int:
    return _FLOAT_BYTES if scheme == "dense" else 1


def readable_bytes(count: int) -> str:
    """``1.5 GB``: decimal units, as vendors and operating systems print them."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
