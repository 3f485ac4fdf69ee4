"""Whether a model fits, in one sentence, and what would make it fit. No paddle: the figures are the memory plan's."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.cli.checks.finding import Finding
from paddle_ds.config.engine import EngineConfig
from paddle_ds.devices.base import MemoryStats
from paddle_ds.engine.assets import recipe_for
from paddle_ds.errors import ConfigError, MemoryPlanError
from paddle_ds.runtime.memory_plan import MemoryPlan, make_plan, readable_bytes

_TOPIC = "model"
_UNLIMITED = MemoryStats(sys.maxsize, sys.maxsize)
#: as in configs/engine/low-memory.yaml
_FEW_REQUESTS, _SMALL_BATCH = 4, 128
#: a context of fewer tokens is no help: reasoning alone takes more
_SHORTEST_CONTEXT = 512


@dataclasses.dataclass(frozen=True)
class _Step:
    """Something that makes a model smaller: the options, and what they do to a configuration."""

    options: str
    taken: Callable[[EngineConfig], EngineConfig]


def check(checkpoint: Checkpoint, config: EngineConfig, memory: MemoryStats) -> Iterator[Finding]:
    """What the model needs and what ``memory`` has, as the engine's plan counts them.

    Args:
        memory: of the device as it is; what ``config`` leaves to others is taken off here.
    """
    usable = config.memory.usable_bytes(memory.total_bytes, memory.available_bytes)
    left = "" if usable == memory.available_bytes else f", of which {readable_bytes(usable)} may be used"
    here, memory = memory.available_bytes, MemoryStats(memory.total_bytes, usable)
    try:
        needed = _needed(checkpoint, config)
    except (ConfigError, MemoryPlanError) as error:  # wrong with any memory: a context longer than the model's, or than the cache
        yield Finding("config_wrong", _TOPIC, "error", error.message, "change --max-context-tokens, or the size of the cache")
        return
    text = (
        f"this checkpoint in {recipe_for(checkpoint, config).name} with {_context(checkpoint, config):,} tokens of context needs "
        f"{readable_bytes(needed.total_bytes)}; {config.device} has {readable_bytes(here)} available{left}"
    )
    try:
        plan = _plan(checkpoint, config, memory)
    except MemoryPlanError as error:
        if needed.total_bytes <= memory.available_bytes:  # by what the file says of the cache, not for want of memory
            text = error.message
        yield Finding("model_too_large", _TOPIC, "error", text, _cure(checkpoint, config, memory))
        return
    if plan.max_context_tokens >= _context(checkpoint, config):
        yield Finding("model_fits", _TOPIC, "ok", f"{text}; its cache will hold {plan.kv_tokens:,} tokens")
        return
    text += f". A server will hold requests to {plan.max_context_tokens:,} tokens"
    yield Finding("context_shortened", _TOPIC, "warning", text, _cure(checkpoint, config, memory))


def _context(checkpoint: Checkpoint, config: EngineConfig) -> int:
    return config.max_context_tokens or checkpoint.config.max_position_embeddings


def _plan(checkpoint: Checkpoint, config: EngineConfig, memory: MemoryStats) -> MemoryPlan:
    inputs = (checkpoint.config, recipe_for(checkpoint, config), checkpoint.stored(), config, memory, checkpoint.kv_cache())
    return make_plan(*inputs) if config.device == "cpu" else make_plan(*inputs, base_bytes=0)


def _needed(checkpoint: Checkpoint, config: EngineConfig) -> MemoryPlan:
    """The plan of a cache that holds one request of full length, or as many tokens as were asked for."""
    tokens = config.cache.max_tokens or _context(checkpoint, config)
    cache = dataclasses.replace(config.cache, max_tokens=tokens, max_bytes=None)
    return _plan(checkpoint, dataclasses.replace(config, cache=cache), _UNLIMITED)


def _cure(checkpoint: Checkpoint, config: EngineConfig, memory: MemoryStats) -> str:
    """The fewest options that make it fit, tried out on the plan."""
    context = _context(checkpoint, config)
    # asked for, a context may take all the free memory; otherwise the cache takes half of it
    config = dataclasses.replace(config, max_context_tokens=context, cache=dataclasses.replace(config.cache, max_bytes=None))

    def fits(changed: EngineConfig) -> bool:
        try:
            return _needed(checkpoint, changed).total_bytes <= memory.available_bytes
        except (ConfigError, MemoryPlanError):
            return False

    asked = f"--max-context-tokens {context}"
    if fits(config):
        return f"ask for it: {asked} lets the cache take more than half of the free memory"
    taken: list[_Step] = []
    for step in _steps(checkpoint, config):
        taken.append(step)
        if fits(_with(config, taken)):
            for other in taken[:-1]:
                fewer = [kept for kept in taken if kept is not other]
                taken = fewer if fits(_with(config, fewer)) else taken
            return f"{' '.join(step.options for step in taken)} {asked} {_takes(checkpoint, _with(config, taken))}"
    smallest = _with(config, taken)
    tokens = _longest(smallest, context, fits)
    if tokens < _SHORTEST_CONTEXT:
        least = readable_bytes(_needed(checkpoint, _holding(smallest, min(_SHORTEST_CONTEXT, context))).total_bytes)
        return f"no setting makes it fit: at the smallest it needs {least}. Take a smaller model, or free memory"
    options = [*(step.options for step in taken), f"--max-context-tokens {tokens}"]
    return f"{' '.join(options)} {_takes(checkpoint, _holding(smallest, tokens))}"


def _takes(checkpoint: Checkpoint, config: EngineConfig) -> str:
    return f"(needs {readable_bytes(_needed(checkpoint, config).total_bytes)})"


def _steps(checkpoint: Checkpoint, config: EngineConfig) -> Iterator[_Step]:
    """From what costs least to what costs most."""
    if recipe_for(checkpoint, config).name == "none":
        yield _Step("--quant w8a8", lambda old: dataclasses.replace(old, quant="w8a8"))
    limits = config.scheduler
    if limits.max_running_requests > _FEW_REQUESTS or limits.max_batch_tokens > _SMALL_BATCH:
        requests, tokens = min(limits.max_running_requests, _FEW_REQUESTS), min(limits.max_batch_tokens, _SMALL_BATCH)
        fewer = dataclasses.replace(limits, max_running_requests=requests, max_batch_tokens=tokens)
        options = f"--max-running-requests {requests} --max-batch-tokens {tokens}"
        yield _Step(options, lambda old: dataclasses.replace(old, scheduler=fewer))
    if _needed(checkpoint, config).kv_dtype != "int8":
        narrow = dataclasses.replace(config.cache, dtype="int8")
        yield _Step("--kv-dtype int8", lambda old: dataclasses.replace(old, cache=narrow))


def _with(config: EngineConfig, steps: Sequence[_Step]) -> EngineConfig:
    for step in steps:
        config = step.taken(config)
    return config


def _holding(config: EngineConfig, tokens: int) -> EngineConfig:
    """The same with that context, and a cache for it."""
    cache = dataclasses.replace(config.cache, max_tokens=None)
    return dataclasses.replace(config, max_context_tokens=tokens, cache=cache)


def _longest(config: EngineConfig, most: int, fits: Callable[[EngineConfig], bool]) -> int:
    """The most tokens of context, in whole blocks and up to ``most``, with which ``config`` fits; 0: none."""
    block = config.cache.block_tokens
    low, high = 0, most // block  # blocks: `low` fit (or are none), `high` + 1 do not
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(_holding(config, middle * block)) else (low, middle - 1)
    return low * block
