"""How fast and how large: one model, one set of streams, in this process."""

from __future__ import annotations

import dataclasses
import resource
import time

import numpy as np

from paddle_ds.config.engine import EngineConfig
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.engine.llm import LLM


@dataclasses.dataclass(frozen=True)
class EngineBench:
    """One measurement. Rates are medians over the steps of one run; compare only with what ran in alternation."""

    model: str
    quant: str
    prompt_tokens: int
    new_tokens: int
    streams: int
    num_threads: int
    load_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_rss_bytes: int
    planned_bytes: int
    weight_bytes: dict[str, int]
    read_bandwidth_gb_s: float
    kernels: dict[str, str]


def run(config: EngineConfig, *, prompt_tokens: int, new_tokens: int, streams: int) -> EngineBench:
    """Load the model, run ``streams`` prompts of random ids side by side, and time each step by what it computed."""
    llm = LLM(config=config)
    loaded = llm.loaded
    rng = np.random.default_rng(0)
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    prefill_s = 0.0
    decode_steps: list[float] = []
    for warm in (True, False):
        prefill_s, decode_steps = 0.0, []
        for index in range(streams):
            ids = rng.integers(0, loaded.tokenizer.num_tokens, prompt_tokens if not warm else min(prompt_tokens, 16)).tolist()
            loaded.engine.add(f"bench-{warm}-{index}", ids, params)
        while loaded.engine.has_work:
            prefilling = bool(loaded.engine.scheduler.waiting) or any(
                request.num_tokens_to_compute > 1 for request in loaded.engine.scheduler.running
            )
            started = time.perf_counter()
            loaded.engine.step()
            elapsed = time.perf_counter() - started
            if prefilling:
                prefill_s += elapsed
            else:
                decode_steps.append(elapsed)
    return EngineBench(
        model=loaded.name,
        quant=loaded.recipe.name,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        streams=streams,
        num_threads=_num_threads(config),
        load_s=round(loaded.load_s, 2),
        prefill_tokens_per_s=round(streams * prompt_tokens / prefill_s, 2),
        decode_tokens_per_s=round(streams / float(np.median(decode_steps)), 3) if decode_steps else 0.0,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        planned_bytes=loaded.plan.total_bytes,
        weight_bytes=loaded.weight_bytes,
        read_bandwidth_gb_s=round(read_bandwidth_gb_s(), 1),
        kernels=loaded.kernels,
    )


def read_bandwidth_gb_s(num_bytes: int = 1 << 29) -> float:
    """Bytes a second at which one thread sums a large array: a floor to hold decode speed against, not the machine's best."""
    array = np.ones(num_bytes // 8, np.int64)
    array.sum()
    started = time.perf_counter()
    array.sum()
    return num_bytes / (time.perf_counter() - started) / 1e9


def _num_threads(config: EngineConfig) -> int:
    from paddle_ds.devices.environment import usable_cores

    return config.num_threads or usable_cores()
