"""A passport without a model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from paddle_ds_slim.passport import GateRecord, Passport
from paddle_ds_slim.passport.record import (
    VERSION,
    Change,
    Data,
    Divergence,
    Drop,
    ExactMatch,
    Greedy,
    Histogram,
    LayerError,
    Model,
    Pair,
    Ratio,
    Reasoning,
    Source,
    Task,
)


def make_passport(**changes: Any) -> Passport:
    """A passport with every part filled."""
    full = Passport(
        version=VERSION,
        reference=Model("model", "huggingface", "none", "float32"),
        quantized=Model("model-w8a8", "compressed-tensors", "w8a8", "bfloat16"),
        quick=False,
        loss={"wiki": Change.of(2.0, 2.002)},
        perplexity={"wiki": Change.of(math.exp(2.0), math.exp(2.002))},
        kl=Divergence(0.004, 0.02, 0.3, 100, Histogram((1e-3, 1e-2), (20, 70, 10))),
        top1_agreement=0.98,
        greedy=Greedy(16, 64, 40.4, 44.0, 0.5),
        reasoning=Reasoning(40, Pair(1.0, 0.975), Pair(0.0, 0.025), Ratio.of(40.0, 44.0)),
        tasks={
            "sums": Task(40, ExactMatch(0.95, 0.83, 0.99, 38), ExactMatch(0.9, 0.77, 0.96, 36), Drop(0.05, -0.03, 0.16, 3, 1))
        },
        layers=(
            LayerError("model.layers.0.self_attn.q_proj", "w8a8", 0.006, 0.01),
            LayerError("model.layers.1.self_attn.q_proj", "dense", 0.0, 0.0),
            LayerError("lm_head", "w8a8", 0.006, None),
        ),
        bytes=Ratio.of(4_000_000, 1_000_000),
        load_s=Pair(2.0, 1.0),
        decode_tokens_per_s=Ratio.of(10.0, 25.0),
        data=Data({"wiki": Source("wiki.txt", "00ff", 100)}, {"sums": Source("sums.jsonl", "11ff", 40)}, None, {"seed": 0}),
        versions={"paddle_ds": "0", "paddleslim": None},
        gate=GateRecord(True, {}, {}),
    )
    return dataclasses.replace(full, **changes)
