"""Quantisation-aware training of a PaddleNLP model with ``paddle.quantization.QAT``, for the arithmetic of our own runtime.

Paddle's fake quantisers keep one moving scale for a whole tensor. Ours round as ``checkpoints/rounding.py`` and
``kernels/int8_linear.py`` do, bit for bit: weights symmetric with a scale per output channel, activations with a scale per token
found anew each time. Gradients pass through the rounding unchanged (straight-through estimator, arXiv 1308.3432).

The loss is the divergence from a teacher's distributions, not the cross entropy of the text. Measured on the embedded model with
its norms unbalanced by random factors (held-out sums, 60 steps of 1e-5): rounding leaves a mean KL of 0.0220, training for the
teacher 0.0112, for the text 0.0355, for both 0.0255. The text teaches a small model other things than to bear rounding.

Trained are linear layers, their biases, and norms. Embedding and head stay: a short text touches few of their rows, and a tied
head stays tied by itself. The head still computes in INT8 where the scheme says so; the layers before it learn to live with that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.quantization import QAT, BaseQuanter, QuantConfig
from paddle.quantization.factory import QuanterFactory

from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.checkpoints.rounding import INT8_MAX
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.errors import CalibrationError, QuantizationError
from paddle_ds.kernels.int8_linear import quantize_activations
from paddle_ds_slim.paddlenlp_model import LINEARS, blocks_of, build_model, quiet, state_of

Ids = npt.NDArray[np.int64]
TrainedScheme = Literal["dense", "w8a16", "w8a8"]
#: linear layer (or ``lm_head``) such as ``model.layers.0.mlp.up_proj`` -> how it will run
SchemeOf = Callable[[str], TrainedScheme]
#: called with steps done, steps in all, and the loss of the last one
Progress = Callable[[int, int, float], None]

#: training on less would learn the text by heart
FEWEST_TOKENS = 256
_GRADIENT_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class QatConfig:
    """``learning_rate`` falls to 0 in a straight line over ``steps``; a step sees ``batch_sequences`` sequences."""

    steps: int = 60
    learning_rate: float = 1e-5
    batch_sequences: int = 4
    seed: int = 0


def finetune(
    checkpoint: Checkpoint,
    token_ids: Sequence[Ids],
    config: QatConfig,
    progress: Progress = lambda done, total, loss: None,
    *,
    scheme: SchemeOf = lambda name: "w8a8",
    teacher: Checkpoint | None = None,
) -> dict[str, Float32Array]:
    """Train a model to compute well with rounded weights and activations.

    Args:
        checkpoint: what to start from: the original, or one after post-training quantisation. INT8 weights are dequantised.
        token_ids: sequences to train on, each int64 ``[T]``.
        scheme: how each linear layer and the head will run; ``dense`` ones are trained, but not rounded.
        teacher: whose distributions to keep; ``checkpoint`` itself, in float, if not given. Name the original where
            ``checkpoint`` has lost some quality.

    Returns:
        every trained tensor by canonical name, float32, linear weights ``[out, in]``: linear weights, biases, norms. The same
        seed, data and number of threads give the same bits.

    Raises:
        CalibrationError: fewer than :data:`FEWEST_TOKENS` tokens to predict, or ids outside the vocabulary.
        QuantizationError: the loss became NaN or infinite.
    """
    sequences = _usable(token_ids, checkpoint.config.vocab_size)
    reference = build_model(teacher or checkpoint)
    model = build_model(checkpoint)
    model.get_decoder().embed_tokens.weight.stop_gradient = True
    model.lm_head.weight.stop_gradient = True
    fake_quantise(model, scheme)
    trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    clip = nn.ClipGradByGlobalNorm(_GRADIENT_NORM)
    optimizer = paddle.optimizer.Adam(config.learning_rate, parameters=trained, grad_clip=clip)
    batches = _batches(sequences, config)
    for step in range(config.steps):
        optimizer.set_lr(config.learning_rate * (1 - step / config.steps))
        loss = _loss(model, reference, next(batches))
        value = float(loss)
        if not math.isfinite(value):
            raise QuantizationError(
                f"step {step + 1} of quantisation-aware training: the loss is {value}; lower learning_rate "
                f"({config.learning_rate:g}), or start from a checkpoint whose loss is finite"
            )
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        progress(step + 1, config.steps, value)
    roles = {spec.name: spec.role for spec in model_specs(checkpoint.config)}
    kept = (Role.EMBEDDING, Role.HEAD)
    return {name: values for name, values in state_of(model).items() if roles.get(name) not in kept}


def fake_quantise(model: Any, scheme: SchemeOf) -> None:
    """Put our rounding into a PaddleNLP model, in place, and into training mode; its names and parameters stay what they are."""
    plain = {name: owner for name, owner, _, _ in _linears(model)}
    quant_config = QuantConfig(activation=None, weight=None)
    head = type(model.lm_head)  # not a paddle.nn.Linear
    quant_config.add_qat_layer_mapping(head, QuantedHead)
    quant_config.add_type_config([nn.Linear, head], activation=TokenActivations(), weight=ChannelWeights())
    model.train()
    with quiet():
        QAT(quant_config).quantize(model, inplace=True)
    for name, layer, parent, attribute in list(_linears(model)):
        wanted = scheme(name)
        if wanted == "dense":
            setattr(parent, attribute, plain[name])
        elif wanted == "w8a16":
            layer.activation_quanter = None
        elif wanted != "w8a8":
            raise QuantizationError(f"{name}: quantisation-aware training has no scheme {wanted!r}; have: dense, w8a16, w8a8")


def _linears(model: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Name, layer, its parent, and what the parent calls it."""
    for index, block in enumerate(blocks_of(model)):
        for suffix in LINEARS:
            part, _, attribute = suffix.partition(".")
            parent = getattr(block, part)
            yield f"model.layers.{index}.{suffix}", getattr(parent, attribute), parent, attribute
    yield "lm_head", model.lm_head, model, "lm_head"


def _usable(token_ids: Sequence[Ids], vocab_size: int) -> list[Ids]:
    sequences = [np.asarray(ids, np.int64) for ids in token_ids if len(ids) > 1]
    num_tokens = sum(len(ids) - 1 for ids in sequences)
    if num_tokens < FEWEST_TOKENS:
        raise CalibrationError(
            f"quantisation-aware training got {num_tokens} tokens to predict in {len(sequences)} sequences; it needs at least "
            f"{FEWEST_TOKENS}"
        )
    largest, least = max(int(ids.max()) for ids in sequences), min(int(ids.min()) for ids in sequences)
    if least < 0 or largest >= vocab_size:
        raise CalibrationError(
            f"token ids from {least} to {largest}; the model's vocabulary has 0 to {vocab_size - 1}: another tokenizer's?"
        )
    return sequences


def _batches(sequences: Sequence[Ids], config: QatConfig) -> Iterator[list[Ids]]:
    """Endless batches; every sequence comes once before any comes again."""
    random = np.random.default_rng(config.seed)
    queue: list[int] = []
    while True:
        while len(queue) < config.batch_sequences:
            queue += random.permutation(len(sequences)).tolist()
        batch, queue = queue[: config.batch_sequences], queue[config.batch_sequences :]
        yield [sequences[index] for index in batch]


def _loss(model: Any, reference: Any, batch: Sequence[Ids]) -> paddle.Tensor:
    """Mean over predicted tokens of KL(reference || model), in nats."""
    longest = max(len(ids) for ids in batch)
    ids = np.zeros((len(batch), longest), np.int64)  # padding is on the right, where causal attention does not look
    rows = []
    for index, sequence in enumerate(batch):
        ids[index, : len(sequence)] = sequence
        rows.append(index * longest + np.arange(len(sequence) - 1))
    inputs, positions = paddle.to_tensor(ids), paddle.to_tensor(np.concatenate(rows))
    with paddle.no_grad():
        wanted = paddle.nn.functional.log_softmax(_rows(reference, inputs, positions))
    found = paddle.nn.functional.log_softmax(_rows(model, inputs, positions))
    return (wanted.exp() * (wanted - found)).sum(axis=-1).mean()


def _rows(model: Any, ids: paddle.Tensor, positions: paddle.Tensor) -> paddle.Tensor:
    """Logits at flat ``positions`` of ``ids`` ``[B, T]``: float32 ``[positions, vocab]``."""
    logits = model(ids)[0]
    return paddle.gather(logits.reshape([-1, logits.shape[-1]]), positions)


class _RoundWeight(PyLayer):  # type: ignore[misc]  # Paddle's classes are Any to mypy
    """``weight`` through INT8 with a scale for each index of ``axis``; the gradient as if nothing had happened."""

    @staticmethod
    def forward(ctx: Any, weight: paddle.Tensor, axis: int) -> paddle.Tensor:
        largest = weight.abs().max(axis=1 - axis, keepdim=True)
        # a tensor as divisor: by a number, Paddle multiplies with the reciprocal, which is not the same bits
        scale = largest / paddle.full_like(largest, INT8_MAX)
        scale = paddle.where(scale == 0, paddle.ones_like(scale), scale)
        return paddle.clip(paddle.round(weight / scale), -INT8_MAX, INT8_MAX) * scale

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        return gradient


class _RoundActivations(PyLayer):  # type: ignore[misc]
    """Activations ``[..., in]`` through INT8 with a scale per token; the gradient as if nothing had happened."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor) -> paddle.Tensor:
        integers, scale = quantize_activations(x)
        return integers * scale

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        return gradient


class _Dynamic(BaseQuanter):  # type: ignore[misc]
    """What Paddle asks of a quantiser, for one that finds its scales anew each time and keeps none."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        # the output channels of a linear weight [in, out] and of a tied head [vocab, hidden]
        self._channel_axis = 0 if getattr(layer, "transpose_y", False) else 1

    def scales(self) -> None:
        return None

    def zero_points(self) -> None:
        return None

    def bit_length(self) -> int:
        return 8


class ChannelWeightsLayer(_Dynamic):
    """Weight -> the same after INT8 with a scale per output channel, as ``quantize_rows(weight).to_float32()``."""

    def forward(self, weight: paddle.Tensor) -> paddle.Tensor:
        return _RoundWeight.apply(weight, self._channel_axis)

    def quant_axis(self) -> int:
        return self._channel_axis


class TokenActivationsLayer(_Dynamic):
    """Activations -> the same after :func:`quantize_activations`."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return _RoundActivations.apply(x)

    def quant_axis(self) -> int:
        return -1


class ChannelWeights(QuanterFactory):  # type: ignore[misc]
    def _get_class(self) -> type[ChannelWeightsLayer]:
        return ChannelWeightsLayer


class TokenActivations(QuanterFactory):  # type: ignore[misc]
    def _get_class(self) -> type[TokenActivationsLayer]:
        return TokenActivationsLayer


class QuantedHead(nn.Layer):  # type: ignore[misc]
    """PaddleNLP's head in INT8; ``weight`` is still the head's own or the embedding's parameter."""

    def __init__(self, head: Any, quant_config: Any) -> None:
        super().__init__()
        self.weight = head.weight
        self._transpose = head.transpose_y
        self.weight_quanter = quant_config.weight._instance(head)
        self.activation_quanter = quant_config.activation._instance(head)

    def forward(self, hidden: paddle.Tensor, tensor_parallel_output: bool | None = None) -> paddle.Tensor:
        del tensor_parallel_output  # Qwen2 passes it; there is one process here
        x = hidden if self.activation_quanter is None else self.activation_quanter(hidden)
        return paddle.matmul(x, self.weight_quanter(self.weight), transpose_y=self._transpose)
