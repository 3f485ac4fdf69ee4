"""The INT8 path gives a request the same bits whatever runs beside it, however its prompt is cut, on one thread or two."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddle_ds.checkpoints.base import KvScales, KvScheme
from paddle_ds.config.engine import CacheConfig, EngineConfig, KvDtype, SchedulerConfig
from paddle_ds.config.sampling import SamplingParams
from paddle_ds.engine.core import Engine, Limits
from paddle_ds.engine.llm import LLM
from paddle_ds.kernels import native
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.runtime.sampler import Sampler
from paddle_ds.sched import BlockPool, Scheduler

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

MODEL = Path(__file__).parents[2] / "paddle_ds" / "assets" / "tiny-r1"
NUM_BLOCKS = 96


KV_DTYPES: tuple[KvDtype, ...] = ("float32", "bfloat16", "int8")
CACHES = (*KV_DTYPES, "int8 static")


@pytest.fixture(scope="module")
def runners() -> dict[str, ModelRunner]:
    """One model with a cache of each kind."""
    caches = {dtype: CacheConfig(dtype=dtype, max_tokens=16 * NUM_BLOCKS) for dtype in KV_DTYPES}
    made: dict[str, ModelRunner] = {
        dtype: LLM(config=EngineConfig(model=str(MODEL), quant="w8a8", max_context_tokens=1024, cache=cache)).loaded.runner
        for dtype, cache in caches.items()
    }
    decoder = made["int8"].decoder
    heads = np.linspace(0.01, 0.02, decoder.config.num_kv_heads, dtype=np.float32)
    made["int8 static"] = ModelRunner(
        decoder,
        Sampler(decoder.config.vocab_size),
        num_blocks=NUM_BLOCKS,
        block_tokens=16,
        kv_dtype="int8",
        kv_scheme=KvScheme(tuple(KvScales(heads, heads) for _ in range(decoder.config.num_layers))),
    )
    return made


@dataclass(frozen=True)
class Job:
    """A request: its prompt, how it is sampled, and the step at which it arrives."""

    prompt: tuple[int, ...]
    num_tokens: int
    temperature: float
    top_p: float
    seed: int
    arrives: int = 0


def run(runner: ModelRunner, jobs: list[Job], *, max_batch_tokens: int, num_blocks: int) -> list[list[tuple[int, float | None]]]:
    """Tokens and log probabilities of each job."""
    config = SchedulerConfig(max_running_requests=min(32, max_batch_tokens), max_batch_tokens=max_batch_tokens)
    limits = Limits(16 * num_blocks, runner.decoder.config.vocab_size, frozenset())
    engine = Engine(Scheduler(config, BlockPool(num_blocks, 16)), runner, limits)
    answers: list[list[tuple[int, float | None]]] = [[] for _ in jobs]
    step = 0
    while engine.has_work or any(job.arrives >= step for job in jobs):
        for index, job in enumerate(jobs):
            if job.arrives == step:
                params = SamplingParams(
                    temperature=job.temperature, top_p=job.top_p, seed=job.seed, max_tokens=job.num_tokens, logprobs=3
                )
                engine.add(str(index), job.prompt, params)
        progress = engine.step()
        assert not progress.failed
        for token in progress.tokens:
            answers[int(token.request.request_id)].append((token.sampled.token_id, token.sampled.logprob))
        step += 1
    return answers


ids = st.integers(0, 900)
job = st.builds(
    Job,
    prompt=st.lists(ids, min_size=1, max_size=90).map(tuple),
    num_tokens=st.integers(1, 24),
    temperature=st.sampled_from([0.0, 1.0]),
    top_p=st.sampled_from([0.9, 1.0]),
    seed=st.integers(0, 9),
    arrives=st.integers(0, 6),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(jobs=st.lists(job, min_size=1, max_size=32), max_batch_tokens=st.sampled_from([32, 33, 64, 512]), data=st.data())
def test_bits_do_not_depend_on_the_schedule(
    runners: dict[str, ModelRunner], jobs: list[Job], max_batch_tokens: int, data: st.DataObject
) -> None:
    runner = runners[data.draw(st.sampled_from(CACHES))]
    # few blocks: requests are preempted and computed again
    num_blocks = data.draw(st.sampled_from([8, 24, NUM_BLOCKS]))
    together = run(runner, jobs, max_batch_tokens=max_batch_tokens, num_blocks=num_blocks)
    index = data.draw(st.integers(0, len(jobs) - 1))
    lone = dataclasses.replace(jobs[index], arrives=0)
    alone = run(runner, [lone], max_batch_tokens=512, num_blocks=NUM_BLOCKS)[0]
    assert together[index] == alone


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    code = (
        "import sys; from paddle_ds import LLM, SamplingParams\n"
        "out = LLM(quant='w8a8', num_threads=int(sys.argv[1])).generate([list(range(3, 200)), [5]],"
        " SamplingParams(temperature=1, seed=4, max_tokens=40, logprobs=0, ignore_eos=True), progress=False)\n"
        "print([(t.token_id, t.logprob.hex()) for o in out for t in o.completions[0].logprobs])"
    )
    answers = {
        subprocess.run([sys.executable, "-c", code, threads], capture_output=True, text=True, check=True).stdout
        for threads in ("1", "2")
    }
    assert len(answers) == 1
