"""From a checkpoint on disk to a decoder in memory: one tensor at a time, quantised on the way where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, GroupedWeight, Int8Weight, Weight
from paddle_ds.checkpoints.rounding import quantize_dense, quantize_rows
from paddle_ds.config.recipe import Recipe, Scheme
from paddle_ds.config.tensors import model_specs
from paddle_ds.kernels.registry import Kernels
from paddle_ds.layers import Embedding, Linear, MappedEmbedding, RMSNorm, Shared, SideBySide
from paddle_ds.models import Decoder

FloatArray = npt.NDArray[np.float32]

#: an embedding table of this size or more stays in its file: a step needs a few rows of it
_MAPPED_FROM_BYTES = 64 << 20
#: rows of an INT8 weight that are packed at a time: a multiple of every packing's group of rows
_PIECE_ROWS = 8192


def load_decoder(
    checkpoint: Checkpoint,
    recipe: Recipe,
    kernels: Kernels,
    progress: Callable[[float], None] = lambda share: None,
    *,
    map_embedding: bool = True,
) -> Decoder:
    """Build the decoder of ``checkpoint``.

    Args:
        progress: called with the share done, 0 to 1.
        map_embedding: leave a large embedding table in its file, from which the host reads rows; else it goes to the device.

    Raises:
        CheckpointError: a tensor cannot be read or holds NaN.
    """
    return Decoder(checkpoint.config, _CheckpointSource(checkpoint, recipe, kernels, map_embedding), kernels, progress)


class _CheckpointSource:
    """Implements :class:`paddle_ds.models.ParameterSource`."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, kernels: Kernels, map_embedding: bool) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._kernels = kernels
        self._map_embedding = map_embedding
        self._specs = {spec.name: spec for spec in model_specs(checkpoint.config)}

    def linear(self, *prefixes: str) -> Linear:
        parts = [self._load(prefix) for prefix in prefixes]
        names = [f"{prefix}.weight" for prefix in prefixes]
        schemes = [scheme for _, scheme in parts]
        if len(set(schemes)) == 1 and not any(isinstance(weight, GroupedWeight) for weight, _ in parts):
            layer = self._make_linear([weight for weight, _ in parts], schemes[0], self._bias(prefixes), names)
        else:  # one of q, k, v was left in floating point, or each has groups of its own
            named = zip(prefixes, names, parts, strict=True)
            layers = [self._make_linear([w], scheme, self._bias((prefix,)), [name]) for prefix, name, (w, scheme) in named]
            layer = layers[0] if len(layers) == 1 else SideBySide(layers)
        self._release(*names)
        return layer

    def embedding(self, name: str) -> Embedding | MappedEmbedding:
        weight = self._read(name)
        assert isinstance(weight, DenseTensor)
        tied_float_head = self._checkpoint.config.tie_word_embeddings and self._head_scheme() == "dense"
        if self._map_embedding and weight.values.nbytes >= _MAPPED_FROM_BYTES and not tied_float_head:
            self._release(name)  # verifying it has read every page; a few rows a step come back when they are needed
            return MappedEmbedding(weight.values, weight.dtype, lambda: self._release(name))
        layer = Embedding(to_paddle(weight))
        self._release(name)
        return layer

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(
            paddle.to_tensor(self._read(name).to_float32()),
            self._checkpoint.config.rms_norm_eps,
            self._kernels.rms_norm,
        )

    def head(self, embedding: Embedding | MappedEmbedding) -> Linear:
        if not self._checkpoint.config.tie_word_embeddings:
            return self.linear("lm_head")
        scheme = self._head_scheme()
        if scheme == "dense" and isinstance(embedding, Embedding) and embedding.weight.dtype != paddle.float16:
            return Shared(self._kernels.dense_linear(embedding.weight, None))
        name = "model.embed_tokens.weight"
        weight = self._read(name)
        assert isinstance(weight, DenseTensor)
        layer = self._make_linear([weight if scheme == "dense" else quantize_dense(weight)], scheme, None, [name])
        self._release(name)
        return layer

    def _head_scheme(self) -> Scheme:
        return self._recipe.scheme("lm_head")

    def _load(self, prefix: str) -> tuple[Weight, Scheme]:
        """The weight of one layer in the precision it will have, and its scheme."""
        name = f"{prefix}.weight"
        weight = self._read(name)
        scheme = self._recipe.scheme(prefix)
        if isinstance(weight, GroupedWeight):
            return _regrouped(weight, scheme), scheme
        if scheme == "dense" or isinstance(weight, Int8Weight):
            return weight, scheme
        quantized = quantize_dense(weight)
        self._release(name)  # before packing, so that source, integers and packed integers are never there together
        return quantized, scheme

    def _read(self, name: str) -> Weight:
        return self._checkpoint.read(self._specs[name])

    def _release(self, *names: str) -> None:
        for name in names:
            self._checkpoint.release(self._specs[name])

    def _bias(self, prefixes: tuple[str, ...]) -> FloatArray | None:
        if f"{prefixes[0]}.bias" not in self._specs:
            return None
        return np.concatenate([self._read(f"{prefix}.bias").to_float32() for prefix in prefixes])

    def _make_linear(self, weights: list[Weight], scheme: Scheme, bias: FloatArray | None, names: Sequence[str]) -> Linear:
        if scheme == "dense":
            stacked = _stack_dense(weights)
            return self._kernels.dense_linear(stacked, None if bias is None else paddle.to_tensor(bias))
        if isinstance(weights[0], GroupedWeight):
            assert len(weights) == 1, "each has groups of its own"
            return self._make_grouped(weights[0], bias)
        integers = [weight for weight in weights if isinstance(weight, Int8Weight)]
        assert len(integers) == len(weights)
        scales = np.concatenate([part.scales for part in integers])
        operator = self._kernels.int8_linear if scheme == "w8a8" else self._kernels.weight_only_linear
        return operator(_pieces(integers, lambda: self._release(*names)), scales, bias)

    def _make_grouped(self, weight: GroupedWeight, bias: FloatArray | None) -> Linear:
        shape = (weight.group_size, weight.bits)
        layer: Linear = self._kernels.grouped_linear(
            weight.values, weight.scales, weight.zero_points, weight.group_index, *shape, bias
        )
        return layer


def _regrouped(weight: GroupedWeight, scheme: Scheme) -> Weight:
    """``weight`` as ``scheme`` wants it: as it is, dequantised, or dequantised and rounded to one scale a channel."""
    if scheme == ("w4a16" if weight.bits == 4 else "w8a16"):
        return weight
    dense = weight.to_float32()
    return DenseTensor(dense, "float32") if scheme == "dense" else quantize_rows(dense)


def _pieces(weights: list[Int8Weight], release: Callable[[], None]) -> Iterator[npt.NDArray[np.int8]]:
    """The rows of all weights in pieces; ``release`` is called after each, so that a large source is never resident whole."""
    for weight in weights:
        for first in range(0, len(weight.values), _PIECE_ROWS):
            yield weight.values[first : first + _PIECE_ROWS]
            release()


def _stack_dense(weights: list[Weight]) -> paddle.Tensor:
    """One tensor of all rows: bfloat16 where every part is, else float32."""
    if all(isinstance(weight, DenseTensor) and weight.dtype == "bfloat16" for weight in weights):
        parts: list[npt.NDArray[np.generic]] = [np.ascontiguousarray(weight.values) for weight in weights]
    else:
        parts = [weight.to_float32() for weight in weights]
    return paddle.to_tensor(parts[0] if len(parts) == 1 else np.concatenate(parts))


def to_paddle(tensor: DenseTensor) -> paddle.Tensor:
    """The same bits in Paddle's memory; Paddle takes uint16 arrays for bfloat16."""
    return paddle.to_tensor(np.ascontiguousarray(tensor.values))
