"""A model runner whose cache leaves room for a step: tried on the device, because it alone knows what its operators need."""

from __future__ import annotations

import logging

import numpy as np

from paddle_ds.checkpoints.base import KvScheme
from paddle_ds.config.engine import EngineConfig, SchedulerConfig
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.devices.base import Device
from paddle_ds.devices.failures import translating
from paddle_ds.errors import DeviceOutOfMemory
from paddle_ds.logs import fields
from paddle_ds.models import Decoder
from paddle_ds.runtime.memory_plan import MemoryPlan, readable_bytes
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.runtime.sampler import Sampler
from paddle_ds.sched import Chunk, Request, StepPlan

logger = logging.getLogger(__name__)

#: what is left of a cache that was too large
_SMALLER = 0.75


def fitting_runner(
    decoder: Decoder, sampler: Sampler, plan: MemoryPlan, config: EngineConfig, *, device: Device, kv_scheme: KvScheme | None
) -> tuple[ModelRunner, MemoryPlan]:
    """A runner, and the plan as it came out: with fewer blocks where the planned ones do not fit beside a full step.

    On the CPU the plan is taken as it is: memory becomes resident only as it is used, so a trial would show nothing.

    Raises:
        DeviceOutOfMemory: not even the smallest cache fits, or not the context that was asked for.
    """
    planned = plan
    while True:
        try:
            with translating(device.name):
                runner = ModelRunner(
                    decoder,
                    sampler,
                    num_blocks=plan.num_blocks,
                    block_tokens=plan.block_tokens,
                    kv_dtype=plan.kv_dtype,
                    kv_scheme=kv_scheme,
                    device=device,
                    step_timeout_s=config.step_timeout_s,
                )
            if device.type != "cpu":
                _try_steps(runner, config.scheduler)
        except DeviceOutOfMemory as error:
            plan = _smaller(plan, planned, device, error)
            device.empty_cache()
        else:
            return runner, plan


def _try_steps(runner: ModelRunner, limits: SchedulerConfig) -> None:
    """The largest prompt step, and the largest step that samples. What they leave in the cache is nobody's."""
    num_tokens = min(limits.max_batch_tokens, runner.capacity_tokens)
    request = _request(num_tokens)
    request.block_ids = list(range(-(-num_tokens // runner.block_tokens)))
    runner.execute(StepPlan((Chunk(request, 0, request.token_ids, sample=True),)))
    chunks = []
    for index in range(limits.max_running_requests):
        one = _request(1)
        one.block_ids = [index % (runner.capacity_tokens // runner.block_tokens)]
        chunks.append(Chunk(one, 0, one.token_ids, sample=True))
    runner.execute(StepPlan(tuple(chunks)))


def _request(num_tokens: int) -> Request:
    params = SamplingParams(temperature=0.0)
    return Request("trial", np.zeros(num_tokens, int).tolist(), params, seed=0, max_new_tokens=1, end_ids=frozenset())


def _smaller(plan: MemoryPlan, planned: MemoryPlan, device: Device, error: DeviceOutOfMemory) -> MemoryPlan:
    smaller = plan.with_blocks(int(plan.num_blocks * _SMALLER))
    wanted = plan.requested_context_tokens or 0
    if smaller.num_blocks < 1 or smaller.kv_tokens < wanted:
        raise DeviceOutOfMemory(
            f"{error.message}. Beside {readable_bytes(sum(plan.weight_bytes.values()))} of weights there is no room for "
            f"{f'a context of {wanted} tokens' if wanted else 'a cache'} on {device.name}; lower scheduler.max_batch_tokens, "
            f"scheduler.max_running_requests or max_context_tokens, or use a smaller model"
        ) from error
    because = f"{planned.num_blocks} blocks leave no room for a step"
    logger.warning("cache.shrunk", extra=fields(blocks=smaller.num_blocks, kv_tokens=smaller.kv_tokens, because=because))
    return smaller
