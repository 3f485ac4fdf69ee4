"""One decoder layer while it is being quantised: its weights in float32, what its linears read, and what was folded where.

A fold moves a factor ``s`` and a shift ``z`` per channel across a pair of neighbours, which changes no output::

    norm-qkv       input norm               ->  q, k, v        norm / s                    W * s
    norm-mlp       post-attention norm      ->  gate, up       norm / s                    W * s
    up-down        up                       ->  down           rows of up / s              W * s
    value-output   v (kv heads)             ->  o (all heads)  (rows of v, bias - z) / s   W * s, bias + W z

The last one holds because attention weights sum to one; each kv head's channels meet the output projection once for every query
head of its group, so they share ``s`` and ``z``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from paddle_ds.checkpoints.base import Weight
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.config.model import ModelConfig
from paddle_ds_slim.recipe import Pair
from paddle_ds_slim.rounding import Format

#: pair -> what produces the activations, what reads them
PAIRS: Mapping[Pair, tuple[str, tuple[str, ...]]] = {
    "norm-qkv": ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "value-output": ("self_attn.v_proj", ("self_attn.o_proj",)),
    "norm-mlp": ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    "up-down": ("mlp.up_proj", ("mlp.down_proj",)),
}
#: linear layer -> the first of those that read the same input
READERS: Mapping[str, str] = {name: readers[0] for _, readers in PAIRS.values() for name in readers}


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """``scale`` and ``shift`` float32 per channel of the producer (so of kv heads for ``value-output``)."""

    pair: Pair
    scale: Float32Array
    shift: Float32Array | None = None


class BlockState:
    """Weights by what follows ``model.layers.N.``, such as ``mlp.down_proj.weight``; linears ``[out, in]``."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        tensors: dict[str, Float32Array],
        inputs: dict[str, Float32Array],
        formats: Mapping[str, Format],
    ) -> None:
        self.config = config
        self.index = index
        self.tensors = tensors
        #: first reader -> float32 ``[tokens, in]``
        self.inputs = inputs
        #: linear -> how it will be held
        self.formats = formats
        self.folds: list[Fold] = []
        #: linear -> scales ``[out, G]`` that a step chose
        self.scales: dict[str, Float32Array] = {}
        #: linear -> integers, once it is rounded
        self.rounded: dict[str, Weight] = {}
        #: pair or linear -> what a step chose, for the record
        self.choices: dict[str, dict[str, float]] = {}

    def weight(self, linear: str) -> Float32Array:
        return self.tensors[f"{linear}.weight"]

    def input_of(self, linear: str) -> Float32Array:
        """What a linear layer reads, float32 ``[tokens, in]``."""
        return self.inputs[READERS[linear]]

    def fold(self, fold: Fold) -> None:
        """Apply ``fold`` to weights and recorded inputs."""
        self.folds.append(fold)
        apply_fold(self.config, self.tensors, fold)
        readers = PAIRS[fold.pair][1]
        recorded = self.inputs[readers[0]]
        if fold.shift is not None:
            recorded -= widened(self.config, fold.pair, fold.shift)
        recorded /= widened(self.config, fold.pair, fold.scale)


def apply_fold(config: ModelConfig, tensors: dict[str, Float32Array], fold: Fold) -> None:
    """Change the weights of one layer in place. A bias that a shift needs is added."""
    producer, readers = PAIRS[fold.pair]
    scale, shift = fold.scale, fold.shift
    if producer.endswith("norm"):
        assert shift is None, "an RMSNorm has no bias to take a shift"
        tensors[f"{producer}.weight"] = tensors[f"{producer}.weight"] / scale
    else:
        tensors[f"{producer}.weight"] = tensors[f"{producer}.weight"] / scale[:, None]
        bias = tensors.get(f"{producer}.bias")
        if shift is not None:
            bias = -shift if bias is None else bias - shift
        if bias is not None:
            tensors[f"{producer}.bias"] = bias / scale
    wide_scale = widened(config, fold.pair, scale)
    for reader in readers:
        weight = tensors[f"{reader}.weight"]
        if shift is not None:
            added = weight @ widened(config, fold.pair, shift)
            tensors[f"{reader}.bias"] = tensors.get(f"{reader}.bias", np.float32(0)) + added
        tensors[f"{reader}.weight"] = weight * wide_scale


def widened(config: ModelConfig, pair: Pair, values: Float32Array) -> Float32Array:
    """Values per channel of the producer as values per input of the readers."""
    if pair != "value-output" or config.num_heads == config.num_kv_heads:
        return values
    heads = values.reshape(config.num_kv_heads, config.head_dim)
    return np.repeat(heads, config.num_heads // config.num_kv_heads, axis=0).reshape(-1)


def narrowed_max(config: ModelConfig, pair: Pair, values: Float32Array) -> Float32Array:
    """The largest of the values that share a channel of the producer."""
    if pair != "value-output" or config.num_heads == config.num_kv_heads:
        return values
    grouped = values.reshape(config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
    largest: Float32Array = grouped.max(axis=1).reshape(-1)
    return largest
