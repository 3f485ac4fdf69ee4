"""Loads a checkpoint without its tokenizer, for comparing logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.config.engine import EngineConfig, Quant, SchedulerConfig
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.engine.assets import recipe_for
from paddle_ds.engine.core import Engine, Limits
from paddle_ds.kernels.registry import choose
from paddle_ds.runtime.evaluate import position_logits
from paddle_ds.runtime.loader import load_decoder
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.runtime.sampler import Sampler
from paddle_ds.sched import BlockPool, Scheduler

NUM_BLOCKS, BLOCK_TOKENS = 64, 16


def make_runner(path: Path, quant: Quant = "none") -> ModelRunner:
    """A runner over the checkpoint in ``path``."""
    with open_checkpoint(path) as checkpoint:
        recipe = recipe_for(checkpoint, EngineConfig(quant=quant))
        decoder = load_decoder(checkpoint, recipe, choose(CpuDevice()))
    return ModelRunner(decoder, Sampler(decoder.config.vocab_size), num_blocks=NUM_BLOCKS, block_tokens=BLOCK_TOKENS)


def all_logits(runner: ModelRunner, ids: list[int], chunk_tokens: int = 256) -> npt.NDArray[np.float32]:
    """float32 [T, vocab]."""
    return np.concatenate(list(position_logits(runner, ids, chunk_tokens=chunk_tokens)))


def greedy(runner: ModelRunner, prompts: list[list[int]], num_tokens: int, max_batch_tokens: int = 512) -> list[list[int]]:
    """Greedy continuations of all prompts, batched by the scheduler."""
    config = SchedulerConfig(max_running_requests=min(64, max_batch_tokens), max_batch_tokens=max_batch_tokens)
    scheduler = Scheduler(config, BlockPool(NUM_BLOCKS, BLOCK_TOKENS))
    engine = Engine(scheduler, runner, Limits(NUM_BLOCKS * BLOCK_TOKENS, runner.decoder.config.vocab_size, frozenset()))
    params = SamplingParams(temperature=0, max_tokens=num_tokens)
    answers: dict[str, list[int]] = {}
    for index, ids in enumerate(prompts):
        engine.add(str(index), ids, params)
        answers[str(index)] = []
    while engine.has_work:
        progress = engine.step()
        assert not progress.failed
        for token in progress.tokens:
            answers[token.request.request_id].append(token.sampled.token_id)
    return list(answers.values())
