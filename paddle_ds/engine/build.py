"""From an ``EngineConfig`` to a running ``Engine``: open, plan, load."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.base import Checkpoint, KvScheme
from paddle_ds.config.engine import EngineConfig
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Recipe
from paddle_ds.devices.base import Device, MemoryStats
from paddle_ds.devices.discovery import open_device
from paddle_ds.devices.environment import isa_caps
from paddle_ds.devices.failures import translating
from paddle_ds.devices.flags import FlagReport, apply_flags
from paddle_ds.engine.assets import recipe_for, resolve_model
from paddle_ds.engine.core import Engine, Limits
from paddle_ds.errors import ConfigError, ConfigMismatchError, DeviceError, UnsupportedError
from paddle_ds.kernels.products import Compiled, ProductCount
from paddle_ds.kernels.registry import NATIVE, REFERENCE, Kernels, choose
from paddle_ds.logs import fields
from paddle_ds.models import Decoder
from paddle_ds.runtime.coverage import decode_fallbacks
from paddle_ds.runtime.fitting import fitting_runner
from paddle_ds.runtime.loader import load_decoder
from paddle_ds.runtime.memory_plan import MemoryPlan, make_plan, readable_bytes
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.runtime.sampler import Sampler
from paddle_ds.runtime.watchdog import Watchdog
from paddle_ds.sched import BlockPool, Scheduler
from paddle_ds.settings import Settings
from paddle_ds.text import Tokenizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """An engine and what is known of the model in it."""

    engine: Engine
    runner: ModelRunner
    device: Device
    #: the flags of ``memory`` and what came of each
    flags: list[FlagReport]
    tokenizer: Tokenizer
    model: ModelConfig
    directory: Path
    name: str
    checkpoint_format: str
    recipe: Recipe
    plan: MemoryPlan
    kernels: dict[str, str]
    #: operator -> why a faster implementation does not run
    fallbacks: dict[str, str]
    #: what the products of INT8 layers run on -> number of layers
    int8_products: dict[str, int]
    #: what the compiled operators use here, where they are used
    compiled: Compiled | None
    weight_bytes: dict[str, int]
    load_s: float


def load(
    config: EngineConfig, settings: Settings | None = None, progress: Callable[[float], None] = lambda share: None
) -> LoadedModel:
    """Open the checkpoint, plan its memory, load it.

    Raises:
        PaddleDSError: the checkpoint, the device or the memory does not allow it; nothing is half loaded.
    """
    started = time.monotonic()
    machine = _Machine.of(config, settings)
    with open_checkpoint(resolve_model(config), settings) as checkpoint:
        weights = _read(checkpoint, config, machine, progress)
    return _assemble(weights, config, machine, started)


def load_opened(
    checkpoint: Checkpoint, config: EngineConfig, progress: Callable[[float], None] = lambda share: None
) -> LoadedModel:
    """:func:`load` of a checkpoint that is open already and stays so, also of one that is not on disk as a whole.

    ``config.model`` is not looked at. The tokenizer is that of ``checkpoint.directory``.

    Raises:
        PaddleDSError: the checkpoint, the device or the memory does not allow it; nothing is half loaded.
    """
    started = time.monotonic()
    machine = _Machine.of(config)
    return _assemble(_read(checkpoint, config, machine, progress), config, machine, started)


@dataclasses.dataclass(frozen=True)
class _Machine:
    """What a configuration runs on, known before a checkpoint is opened."""

    device: Device
    flags: list[FlagReport]
    kernels: Kernels
    compiled: Compiled | None
    products: ProductCount

    @classmethod
    def of(cls, config: EngineConfig, settings: Settings | None = None) -> _Machine:
        extra_profiles = Path(settings.device_profiles) if settings and settings.device_profiles else None
        device = open_device(config.device, extra_profiles)
        # before the first tensor, with which Paddle's allocator comes to be
        flags = apply_flags(config.memory.wanted(), device, strict=config.strict)
        _check_preflight(device)
        device.activate()
        on_cpu = device.type == "cpu"
        kernels = choose(device, strict=config.strict and on_cpu)  # elsewhere it is known only with the model what is used
        _check_block_tokens(config, kernels)
        compiled = Compiled.here() if NATIVE in kernels.chosen.values() else None
        best = compiled.best_product if compiled else REFERENCE
        return cls(device, flags, kernels, compiled, ProductCount(kernels.int8_linear, best, strict=config.strict))


@dataclasses.dataclass(frozen=True)
class _Weights:
    """All that is needed of a checkpoint, which can be closed then."""

    tokenizer: Tokenizer
    recipe: Recipe
    plan: MemoryPlan
    decoder: Decoder
    directory: Path
    checkpoint_format: str
    kv_scheme: KvScheme | None


def _read(checkpoint: Checkpoint, config: EngineConfig, machine: _Machine, progress: Callable[[float], None]) -> _Weights:
    tokenizer = Tokenizer.from_dir(checkpoint.directory)
    _check_vocabulary(tokenizer, checkpoint)
    recipe = recipe_for(checkpoint, config)
    kv_scheme = checkpoint.kv_cache()
    on_cpu = machine.device.type == "cpu"
    inputs = (checkpoint.config, recipe, checkpoint.stored(), config, _memory(machine.device, config), kv_scheme)
    plan = make_plan(*inputs) if on_cpu else make_plan(*inputs, base_bytes=0)
    _log_plan(checkpoint, recipe, plan)
    kernels = dataclasses.replace(machine.kernels, int8_linear=machine.products)
    watchdog = Watchdog(None if on_cpu else config.step_timeout_s)

    def told(share: float) -> None:
        watchdog.calm()
        progress(share)

    with translating(machine.device.name), watchdog:
        decoder = load_decoder(checkpoint, recipe, kernels, told, map_embedding=on_cpu)
    return _Weights(tokenizer, recipe, plan, decoder, checkpoint.directory, checkpoint.format, kv_scheme)


def _assemble(weights: _Weights, config: EngineConfig, machine: _Machine, started_s: float) -> LoadedModel:
    if config.memory.trim_after_load:
        _return_free_memory()
    tokenizer, decoder, kernels = weights.tokenizer, weights.decoder, machine.kernels
    runner, plan = fitting_runner(
        decoder,
        Sampler(tokenizer.num_tokens, kernels.candidates),
        weights.plan,
        config,
        device=machine.device,
        kv_scheme=weights.kv_scheme,
    )
    scheduler = Scheduler(config.scheduler, BlockPool(plan.num_blocks, plan.block_tokens))
    eos_ids = frozenset(tokenizer.eos_ids) | frozenset(decoder.config.eos_token_ids)
    limits = Limits(plan.max_context_tokens, tokenizer.num_tokens, eos_ids)
    loaded = LoadedModel(
        engine=Engine(scheduler, runner, limits),
        runner=runner,
        device=machine.device,
        flags=machine.flags,
        tokenizer=tokenizer,
        model=decoder.config,
        directory=weights.directory,
        name=config.served_name or weights.directory.name,
        checkpoint_format=weights.checkpoint_format,
        recipe=weights.recipe,
        plan=plan,
        # what was chosen is not always what runs: float layers cannot be fused
        kernels=kernels.chosen if decoder.fused is not None else {**kernels.chosen, "fused_decoder": "not used"},
        fallbacks={**_used(kernels.passed_over, weights, machine.device), **machine.products.fallbacks()},
        int8_products=machine.products.counts,
        compiled=machine.compiled,
        weight_bytes=decoder.weight_bytes(),
        load_s=time.monotonic() - started_s,
    )
    if config.strict and machine.device.type != "cpu":
        _refuse_fallbacks(loaded)
    _log_loaded(loaded)
    return loaded


def _check_preflight(device: Device) -> None:
    """Say what the device warns of.

    Raises:
        DeviceError: it cannot be used at all.
    """
    for problem in device.preflight():
        if problem.level == "error":
            raise DeviceError(f"device {device.name}: {problem.text}. {problem.fix}")
        logger.warning("device.problem", extra=fields(device=device.name, problem=problem.text, fix=problem.fix))


def _memory(device: Device, config: EngineConfig) -> MemoryStats:
    """Of ``device``; without a limit where it tells none and the size of the cache was given: loading finds out what fits."""
    if device.type == "cpu" or "memory_stats" in device.capabilities.ops:
        stats = device.memory_stats()
        return MemoryStats(stats.total_bytes, config.memory.usable_bytes(stats.total_bytes, stats.available_bytes))
    if config.cache.max_tokens is None and config.cache.max_bytes is None:
        reason = device.capabilities.missing.get("memory_stats", "it has no such capability")
        raise ConfigError(f"device {device.name} does not tell its memory ({reason}); set cache.max_tokens or cache.max_bytes")
    return MemoryStats(sys.maxsize, sys.maxsize)


def _used(passed_over: dict[str, str], weights: _Weights, device: Device) -> dict[str, str]:
    """Of the operators that run on a slower way than there is, those that this model has."""
    if device.type == "cpu":
        return passed_over
    quantized = {"w8a8": "int8_linear", "w8a16": "weight_only_linear"}
    unused = {op for scheme, op in quantized.items() if scheme not in weights.recipe.name.split("+")}
    return {op: reason for op, reason in passed_over.items() if op not in unused}


def _refuse_fallbacks(loaded: LoadedModel) -> None:
    """See that a decode step stays on the device.

    Raises:
        UnsupportedError: Paddle would run an operator of it on the CPU, or a slower way is taken than there is.
    """
    slower = [f"{op} ({reason})" for op, reason in loaded.fallbacks.items()]
    missing = [str(kernel) for kernel in decode_fallbacks(loaded)]
    if slower or missing:
        what = "; ".join(slower + missing)
        raise UnsupportedError(f"strict: a decode step on {loaded.device.name} would not run there as it should: {what}")


def _return_free_memory() -> None:
    """What loading has freed goes back to the system, where the C library can do that (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _check_block_tokens(config: EngineConfig, kernels: Kernels) -> None:
    made_for = kernels.paged_attention.block_tokens
    if made_for is not None and config.cache.block_tokens != made_for:
        name = kernels.chosen["paged_attention"]
        raise ConfigError(
            f"cache.block_tokens is {config.cache.block_tokens}; the {name} attention has blocks of {made_for} tokens"
        )


def _check_vocabulary(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    if tokenizer.num_tokens > checkpoint.config.vocab_size:
        raise ConfigMismatchError(
            f"{checkpoint.directory}: tokenizer.json has {tokenizer.num_tokens} ids, but the model's vocabulary has only "
            f"{checkpoint.config.vocab_size} rows; tokenizer and weights are of different models"
        )


def _log_loaded(loaded: LoadedModel) -> None:
    compiled = loaded.compiled
    runs_on = {"int8_products": loaded.int8_products, "vector_isa": compiled and compiled.vector_isa, "isa_caps": isa_caps()}
    logger.info(
        "model.loaded",
        extra=fields(
            name=loaded.name,
            format=loaded.checkpoint_format,
            quant=loaded.recipe.name,
            weights=readable_bytes(sum(loaded.weight_bytes.values())),
            seconds=round(loaded.load_s, 2),
            **{name: value for name, value in runs_on.items() if value},
        ),
    )


def _log_plan(checkpoint: Checkpoint, recipe: Recipe, plan: MemoryPlan) -> None:
    logger.info(
        "memory.plan",
        extra=fields(
            total=readable_bytes(plan.total_bytes),
            weights=readable_bytes(sum(plan.weight_bytes.values())),
            kv_cache=readable_bytes(plan.kv_bytes),
            kv_tokens=plan.kv_tokens,
            kv_dtype=plan.kv_dtype,
            **({"kv_scales": plan.kv_scales} if plan.kv_scales else {}),
            available=readable_bytes(plan.available_bytes),
            requested_quant=recipe.requested,
            quant=recipe.name,
        ),
    )
    if plan.checkpoint_kv_dtype not in (None, plan.kv_dtype):
        overridden = fields(checkpoint=plan.checkpoint_kv_dtype, runs=plan.kv_dtype, because="cache.dtype asks for it")
        logger.info("kv_dtype.overridden", extra=overridden)
    if plan.max_context_tokens < plan.model_context_tokens and plan.requested_context_tokens is None:
        logger.warning(
            "context.limited",
            extra=fields(
                model_tokens=plan.model_context_tokens,
                served_tokens=plan.max_context_tokens,
                because="the KV cache holds no more; raise cache.max_tokens",
                directory=str(checkpoint.directory),
            ),
        )
