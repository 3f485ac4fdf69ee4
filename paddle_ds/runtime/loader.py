"""From a checkpoint on disk to a decoder in memory: one tensor at a time, quantised on the way where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, Int8Weight
from paddle_ds.checkpoints.rounding import quantize_dense
from paddle_ds.config.recipe import Recipe, Scheme
from paddle_ds.config.tensors import model_specs
from paddle_ds.kernels.registry import Kernels
from paddle_ds.layers import Embedding, Linear, RMSNorm, SideBySide
from paddle_ds.models import Decoder

FloatArray = npt.NDArray[np.float32]


def load_decoder(
    checkpoint: Checkpoint,
    recipe: Recipe,
    kernels: Kernels,
    progress: Callable[[float], None] = lambda share: None,
) -> Decoder:
    """Build the decoder of ``checkpoint``.

    Args:
        progress: called with the share done, 0 to 1.

    Raises:
        CheckpointError: a tensor cannot be read or holds NaN.
    """
    return Decoder(checkpoint.config, _CheckpointSource(checkpoint, recipe, kernels), kernels, progress)


class _CheckpointSource:
    """Implements :class:`paddle_ds.models.ParameterSource`."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, kernels: Kernels) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._kernels = kernels
        self._specs = {spec.name: spec for spec in model_specs(checkpoint.config)}

    def linear(self, *prefixes: str) -> Linear:
        weights = [self._read(f"{prefix}.weight") for prefix in prefixes]
        schemes = [
            self._recipe.scheme(prefix, stored_int8=isinstance(weight, Int8Weight))
            for prefix, weight in zip(prefixes, weights, strict=True)
        ]
        if len(set(schemes)) == 1:
            layer = self._make_linear(weights, schemes[0], self._bias(prefixes))
        else:  # the checkpoint's author left one of q, k, v in floating point
            parts = zip(prefixes, weights, schemes, strict=True)
            layer = SideBySide([self._make_linear([w], s, self._bias((p,))) for p, w, s in parts])
        self._release(*(f"{prefix}.weight" for prefix in prefixes))
        return layer

    def embedding(self, name: str) -> Embedding:
        weight = self._read(name)
        assert isinstance(weight, DenseTensor)
        layer = Embedding(to_paddle(weight))
        self._release(name)
        return layer

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(
            paddle.to_tensor(self._read(name).to_float32()),
            self._checkpoint.config.rms_norm_eps,
            self._kernels.rms_norm,
        )

    def head(self, embedding: Embedding) -> Linear:
        if not self._checkpoint.config.tie_word_embeddings:
            return self.linear("lm_head")
        scheme = self._recipe.scheme("lm_head", stored_int8=False)
        if scheme == "dense" and embedding.weight.dtype == paddle.float32:
            return self._kernels.dense_linear(embedding.weight, None)
        return self._make_linear([self._read("model.embed_tokens.weight")], scheme, None)

    def _read(self, name: str) -> DenseTensor | Int8Weight:
        return self._checkpoint.read(self._specs[name])

    def _release(self, *names: str) -> None:
        for name in names:
            self._checkpoint.release(self._specs[name])

    def _bias(self, prefixes: tuple[str, ...]) -> FloatArray | None:
        if f"{prefixes[0]}.bias" not in self._specs:
            return None
        return np.concatenate([self._read(f"{prefix}.bias").to_float32() for prefix in prefixes])

    def _make_linear(self, weights: list[DenseTensor | Int8Weight], scheme: Scheme, bias: FloatArray | None) -> Linear:
        if scheme == "dense":
            dense = [weight.to_float32() for weight in weights]
            stacked = dense[0] if len(dense) == 1 else np.concatenate(dense)
            return self._kernels.dense_linear(paddle.to_tensor(stacked), None if bias is None else paddle.to_tensor(bias))
        quantized = [weight if isinstance(weight, Int8Weight) else quantize_dense(weight) for weight in weights]
        values = quantized[0].values if len(quantized) == 1 else np.concatenate([part.values for part in quantized])
        scales = np.concatenate([part.scales for part in quantized])
        operator = self._kernels.int8_linear if scheme == "w8a8" else self._kernels.weight_only_linear
        return operator(values, scales, bias)


def to_paddle(tensor: DenseTensor) -> paddle.Tensor:
    """The same bits in Paddle's memory; Paddle takes uint16 arrays for bfloat16."""
    return paddle.to_tensor(np.ascontiguousarray(tensor.values))
