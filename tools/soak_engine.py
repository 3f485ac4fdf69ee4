"""Soak the engine: tens of thousands of steps with real operators, random clients and a cache that is too small for them.

Requests come in bursts and trickles, share beginnings, ask for several answers, leave while they wait, prefill or decode, break
limits; a few steps fail. Between any two steps it is checked that every block is accounted for and nobody is lost; a sample
of the answers is compared, to the bit, with what the same request gets alone; at the end nothing may be left, and resident
memory must not have grown since the second fifth.

    nice -n 19 python tools/soak_engine.py --steps 20000 --model odd --json

Prints a report. The exit status is 1 where something did not hold; the report then says what, and at which step.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import logging
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from paddle_ds.devices import environment  # noqa: E402

if __name__ == "__main__":  # what follows loads Paddle
    environment.prepare()
    environment.import_paddle()

from make_model import make_model  # noqa: E402
from soak_engine_parts.soak import FaultyRunner, Soak, SoakOptions, SoakReport  # noqa: E402

from paddle_ds.checkpoints.native import COMPANIONS  # noqa: E402
from paddle_ds.config.engine import EngineConfig, SchedulerConfig  # noqa: E402
from paddle_ds.config.model import ModelConfig  # noqa: E402
from paddle_ds.engine.assets import EMBEDDED_MODEL  # noqa: E402
from paddle_ds.engine.build import LoadedModel, load  # noqa: E402
from paddle_ds.engine.core import Engine  # noqa: E402
from paddle_ds.kernels import native  # noqa: E402
from paddle_ds.sched import BlockPool, Scheduler  # noqa: E402

#: longest prompt plus answer
CONTEXT_TOKENS = 256
#: less than three of the longest requests; a dozen may run
CACHE_TOKENS = 640
SCHEDULER = SchedulerConfig(max_running_requests=12, max_waiting_requests=40, max_batch_tokens=64)

#: nothing here is a multiple of what vectors, tiles or packed columns hold
ODD_SHAPE = ModelConfig(
    architecture="Qwen2ForCausalLM",
    hidden_size=91,
    intermediate_size=173,
    num_layers=3,
    num_heads=7,
    num_kv_heads=1,
    head_dim=22,
    vocab_size=1031,
    max_position_embeddings=CONTEXT_TOKENS,
    qkv_bias=True,
    bos_token_id=0,
    eos_token_ids=(1,),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="forward passes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="", help="a directory, or 'odd': random weights in an odd shape (default: embedded)")
    parser.add_argument("--config", type=Path, help="YAML file of the engine; model, context, cache size and scheduler are ours")
    parser.add_argument(
        "--max-growth-mb", type=float, default=8, help="resident memory that may come to it (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on standard output")
    arguments = parser.parse_args()
    faulthandler.enable()
    logging.getLogger("paddle_ds").addHandler(logging.NullHandler())
    options = SoakOptions(arguments.steps, arguments.seed, max_growth_bytes=int(arguments.max_growth_mb * 1e6))
    base = EngineConfig.from_yaml(arguments.config) if arguments.config else EngineConfig()
    if reason := native.why_unavailable():
        sys.exit(f"there is nothing to soak: {reason}")
    with ExitStack() as stack:
        if arguments.model == "odd":
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            make_odd_model(directory, arguments.seed)
            arguments.model = str(directory)
        config = small(dataclasses.replace(base, model=arguments.model))
        report = soak(load(config), load(roomy(config)), options)
    print(json.dumps(dataclasses.asdict(report), indent=None if arguments.json else 2))
    if report.violation:
        print(f"VIOLATION at {report.violation}", file=sys.stderr)
    return 1 if report.violation else 0


def small(base: EngineConfig) -> EngineConfig:
    """``base`` with a cache for which requests have to fight."""
    cache = dataclasses.replace(base.cache, max_tokens=CACHE_TOKENS, max_bytes=None)
    return dataclasses.replace(base, max_context_tokens=CONTEXT_TOKENS, cache=cache, scheduler=SCHEDULER)


def roomy(config: EngineConfig) -> EngineConfig:
    """The same with a cache and a step for one whole request."""
    cache = dataclasses.replace(config.cache, max_tokens=CONTEXT_TOKENS)
    scheduler = SchedulerConfig(max_running_requests=1, max_waiting_requests=1, max_batch_tokens=CONTEXT_TOKENS)
    return dataclasses.replace(config, cache=cache, scheduler=scheduler)


def soak(loaded: LoadedModel, alone: LoadedModel, options: SoakOptions, scheduler: Scheduler | None = None) -> SoakReport:
    """Soak the model behind a fresh scheduler (or the given one); ``alone`` is the same model, loaded again."""
    plan = loaded.plan
    scheduler = scheduler or Scheduler(SCHEDULER, BlockPool(plan.num_blocks, plan.block_tokens))
    engine = Engine(scheduler, FaultyRunner(loaded.runner, options.seed), loaded.engine.limits)
    # only W8A8 on the compiled operators promises a request the same bits in every company
    exact = loaded.kernels["fused_decoder"] == "native"
    return Soak(engine, alone.engine if exact else None, options).run()


def make_odd_model(directory: Path, seed: int) -> None:
    """Random weights in :data:`ODD_SHAPE`, with the embedded model's tokenizer."""
    make_model(ODD_SHAPE, directory, seed, "float32")
    for name in COMPANIONS:
        if (EMBEDDED_MODEL / name).is_file():
            shutil.copyfile(EMBEDDED_MODEL / name, directory / name)


if __name__ == "__main__":
    sys.exit(main())
