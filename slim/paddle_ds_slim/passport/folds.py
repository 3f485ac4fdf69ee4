"""What was moved between neighbours of a quantised model, found by holding its weights against the reference's.

Smoothing multiplies inputs of a layer by a factor that its weight takes back, and a shift takes a constant off inputs that its
bias gives back. The function stays as it was, so neither is an error, but plain differences of weights would count it as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, GroupedWeight, Int8Weight, Weight
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.checkpoints.rounding import quantize_dense
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Recipe, Scheme
from paddle_ds.config.tensors import TensorSpec, model_specs

_BLOCK_ELEMENTS = 1 << 22
#: a factor is believed where it takes a tenth or more off the error of the layer that must take it back
_CLEARLY_BETTER = 0.9
#: of the largest bias: a smaller difference of biases is rounding, and no shift
_NO_SHIFT = 1e-3
_EMBEDDING = "model.embed_tokens.weight"


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """A layer of the quantised model reads ``inputs * (x - shift)`` where the reference's reads ``x``, and gives ``outputs * y``.

    float32 ``[in]``, ``[out]`` and ``[in]``; ``shift`` is ``None`` where there is none.
    """

    inputs: Float32Array
    outputs: Float32Array
    shift: Float32Array | None = None


class Side:
    """One of two checkpoints, read by names of layers; a tied ``lm_head`` is the embedding.

    Args:
        recipe: what it runs as; ``None`` for the reference, which runs in floating point.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe | None) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._specs = {spec.name: spec for spec in model_specs(checkpoint.config)}

    def scheme(self, name: str) -> Scheme:
        return "dense" if self._recipe is None else self._recipe.scheme(name)

    def weight(self, name: str) -> Weight:
        """As it runs: rounded where the recipe has that done on load."""
        weight = self._checkpoint.read(self._spec(name))
        is_rounded_on_load = self.scheme(name) != "dense" and isinstance(weight, DenseTensor)
        return quantize_dense(weight) if is_rounded_on_load else weight  # type: ignore[arg-type]

    def norm(self, name: str) -> Float32Array:
        return self._checkpoint.read(self._specs[f"{name}.weight"]).to_float32()

    def bias(self, name: str) -> Float32Array:
        """Zeros where the layer has none."""
        spec = self._specs.get(f"{name}.bias")
        return np.zeros(self._spec(name).shape[0], np.float32) if spec is None else self._checkpoint.read(spec).to_float32()

    def release(self, name: str) -> None:
        self._checkpoint.release(self._spec(name))

    def _spec(self, name: str) -> TensorSpec:
        return self._specs.get(f"{name}.weight") or self._specs[_EMBEDDING]


def head_factors(reference: Side, quantized: Side) -> Factors:
    """Those of ``lm_head``."""
    num_out = reference.config.vocab_size
    return Factors(_norm_factor(reference, quantized, "model.norm"), np.ones(num_out, np.float32))


def layer_factors(reference: Side, quantized: Side, index: int) -> dict[str, Factors]:
    """Those of each linear of decoder layer ``index``, by full name."""
    config, prefix = reference.config, f"model.layers.{index}"
    attention = _norm_factor(reference, quantized, f"{prefix}.input_layernorm")
    mlp = _norm_factor(reference, quantized, f"{prefix}.post_attention_layernorm")
    value, output = f"{prefix}.self_attn.v_proj", f"{prefix}.self_attn.o_proj"
    up, down = f"{prefix}.mlp.up_proj", f"{prefix}.mlp.down_proj"
    value_factor = _moved(reference, quantized, value, output, attention)
    up_factor = _moved(reference, quantized, up, down, mlp)
    shift = _shift(reference, quantized, value, value_factor)

    def plain(inputs: Float32Array, num_out: int) -> Factors:
        return Factors(inputs, np.ones(num_out, np.float32))

    wide_shift = None if shift is None else _widened(config, shift)
    return {
        f"{prefix}.self_attn.q_proj": plain(attention, config.q_size),
        f"{prefix}.self_attn.k_proj": plain(attention, config.kv_size),
        value: Factors(attention, value_factor),
        output: Factors(_widened(config, value_factor), np.ones(config.hidden_size, np.float32), wide_shift),
        f"{prefix}.mlp.gate_proj": plain(mlp, config.intermediate_size),
        up: Factors(mlp, up_factor),
        down: plain(up_factor, config.hidden_size),
    }


def weight_error(exact: Weight, found: Weight, factors: Factors) -> float:
    """``||W_q c / r - W|| / ||W||`` (Frobenius), ``c`` and ``r`` being the factors on inputs and outputs."""
    total = difference = 0.0
    for rows, wanted, given in row_blocks(exact, found):
        total += squares(wanted)
        difference += squares(given * factors.inputs / factors.outputs[rows, None] - wanted)
    return ratio(difference, total)


def row_blocks(exact: Weight, found: Weight) -> Iterator[tuple[slice, Float32Array, Float32Array]]:
    """Some rows of both at a time, float32."""
    num_out, num_in = exact.shape
    step = max(1, _BLOCK_ELEMENTS // num_in)
    for start in range(0, num_out, step):
        rows = slice(start, min(start + step, num_out))
        yield rows, _rows(exact, rows), _rows(found, rows)


def squares(values: Float32Array) -> float:
    """The sum of squares, in float64 where it matters: between blocks."""
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def ratio(difference: float, total: float) -> float:
    """``sqrt(difference / total)``; 0 where both are 0."""
    if total > 0:
        return float(np.sqrt(difference / total))
    return 0.0 if difference == 0 else float("inf")


def _rows(weight: Weight, rows: slice) -> Float32Array:
    if isinstance(weight, DenseTensor):
        return DenseTensor(weight.values[rows], weight.dtype).to_float32()
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.values[rows], weight.scales[rows]).to_float32()
    zero_points = None if weight.zero_points is None else weight.zero_points[rows]
    shared = (weight.group_index, weight.bits, weight.group_size)
    return GroupedWeight(weight.values[rows], weight.scales[rows], zero_points, *shared).to_float32()


def _norm_factor(reference: Side, quantized: Side, name: str) -> Float32Array:
    exact, found = reference.norm(name), quantized.norm(name)
    return np.divide(found, exact, out=np.ones_like(exact), where=exact != 0)


def _moved(reference: Side, quantized: Side, leader: str, follower: str, inputs: Float32Array) -> Float32Array:
    """The factor on the outputs of ``leader``, float32 ``[out]``: each row's best fit, if ``follower`` takes it back."""
    exact, found = reference.weight(leader), quantized.weight(leader)
    factor = np.ones(exact.shape[0], np.float32)
    for rows, wanted, given in row_blocks(exact, found):
        norms = np.einsum("ij,ij->i", wanted, wanted)
        fit = np.divide(np.einsum("ij,ij->i", given * inputs, wanted), norms, out=factor[rows].copy(), where=norms > 0)
        factor[rows] = np.where(fit > 0, fit, 1)
    exact, found = reference.weight(follower), quantized.weight(follower)
    num_out, num_in = exact.shape
    nothing, ones = np.ones(num_in, np.float32), np.ones(num_out, np.float32)
    taken_back = _widened(reference.config, factor) if follower.endswith("o_proj") else factor
    plain, fitted = (weight_error(exact, found, Factors(inputs, ones)) for inputs in (nothing, taken_back))
    return factor if fitted < _CLEARLY_BETTER * plain else np.ones_like(factor)


def _shift(reference: Side, quantized: Side, leader: str, factor: Float32Array) -> Float32Array | None:
    exact, found = reference.bias(leader), quantized.bias(leader)
    shift = exact - found / factor
    largest = max(np.abs(exact).max(), np.abs(found / factor).max())
    return shift if np.abs(shift).max() > _NO_SHIFT * largest else None


def _widened(config: ModelConfig, values: Float32Array) -> Float32Array:
    """Values per channel of the kv heads as values per input of the output projection."""
    heads = values.reshape(config.num_kv_heads, config.head_dim)
    return np.repeat(heads, config.num_heads // config.num_kv_heads, axis=0).reshape(-1)
