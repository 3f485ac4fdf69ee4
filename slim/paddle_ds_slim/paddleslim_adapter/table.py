"""What PaddleSlim's methods make of a model: rows for the table in which our own methods are compared."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.checkpoints.rounding import quantize_rows
from paddle_ds.kernels.int8_linear import quantize_activations
from paddle_ds_slim.paddlenlp_model import block_linears, blocks_of, build_model
from paddle_ds_slim.paddleslim_adapter.folds import Batch, auto_clip, shift, smooth
from paddle_ds_slim.paddleslim_adapter.gptq import gptq
from paddle_ds_slim.paddleslim_adapter.shipped import last_line

logger = logging.getLogger(__name__)

Evaluate = Callable[[Any], Mapping[str, float]]
Rounding = Callable[[Float32Array], Float32Array]


@dataclasses.dataclass(frozen=True)
class Row:
    """One method. Each measure is what ``evaluate`` returned, by name of a text; ``None`` where it has no meaning.

    Rounded are the linear layers of the blocks; the head stays in float32.
    """

    name: str
    #: float weights after the method; ``None`` where the method itself rounds
    fp32: Mapping[str, float] | None = None
    #: INT8 weights per output channel, INT8 activations per token
    w8a8: Mapping[str, float] | None = None
    #: 4-bit weights in groups, float activations
    w4: Mapping[str, float] | None = None
    #: why there are no measures
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class _Method:
    name: str
    apply: Callable[[Any, Sequence[Batch]], None]
    #: bits of the weights it leaves; ``None``: it leaves them to be rounded to nearest
    rounds_to: int | None = None


def _methods(group_size: int) -> list[_Method]:
    def shift_smooth(model: Any, batches: Sequence[Batch]) -> None:
        shift(model, batches)
        smooth(model, batches)

    return [
        _Method("round to nearest", lambda model, batches: None),
        _Method("PaddleSlim Smooth", smooth),
        _Method("PaddleSlim Smooth + PieceWiseSearch", functools.partial(smooth, search="piecewise")),
        _Method("PaddleSlim Shift", shift),
        _Method("PaddleSlim Shift + Smooth", shift_smooth),
        _Method("PaddleSlim AutoClip", functools.partial(auto_clip, group_size=group_size)),
        _Method("PaddleSlim GPTQ int8", functools.partial(gptq, bits=8), rounds_to=8),
        _Method(f"PaddleSlim GPTQ int4 g{group_size}", functools.partial(gptq, bits=4, group_size=group_size), rounds_to=4),
    ]


def paddleslim_table(
    checkpoint: Checkpoint, token_ids: Sequence[npt.NDArray[np.int64]], evaluate: Evaluate, group_size: int = 64
) -> list[Row]:
    """Each method of PaddleSlim's on a fresh model, beside plain rounding to nearest.

    Args:
        token_ids: calibration sequences, each int64 ``[T]``.
        evaluate: measures a PaddleNLP model, for example ``{"stories": loss}``.
        group_size: inputs that share a scale in 4 bits.
    """
    return [_row(method, checkpoint, token_ids, evaluate, group_size) for method in _methods(group_size)]


def _row(
    method: _Method, checkpoint: Checkpoint, token_ids: Sequence[npt.NDArray[np.int64]], evaluate: Evaluate, group_size: int
) -> Row:
    try:
        model = build_model(checkpoint)
        method.apply(model, token_ids)
        if method.rounds_to == 4:
            return Row(method.name, w4=evaluate(model))
        with fake_quantised(model, None if method.rounds_to else nearest_rows, activations=True):
            w8a8 = evaluate(model)
        if method.rounds_to == 8:
            return Row(method.name, w8a8=w8a8)
        with fake_quantised(model, functools.partial(nearest_groups, group_size=group_size)):
            w4 = evaluate(model)
        return Row(method.name, fp32=evaluate(model), w8a8=w8a8, w4=w4)
    except Exception as error:  # a method that fails is a row of the table, too
        logger.debug("paddleslim.failed", exc_info=True)
        return Row(method.name, error=f"{type(error).__name__}: {last_line(error)}")


@contextlib.contextmanager
def fake_quantised(layer: Any, rounding: Rounding | None, activations: bool = False) -> Iterator[None]:
    """A model (or decoder layer) whose linear layers compute with rounded weights, and with INT8 activations per token if asked.

    Args:
        rounding: float32 weight ``[out, in]`` -> the nearest one that can be stored; ``None`` leaves weights as they are.
    """
    linears = [linear for block in blocks_of(layer) for linear in block_linears(block).values()]
    originals = [linear.weight.numpy() for linear in linears]
    hooks = []
    try:
        for linear, weight in zip(linears, originals, strict=True):
            if rounding is not None:
                linear.weight.set_value(np.ascontiguousarray(rounding(np.ascontiguousarray(weight.T)).T))
            if activations:
                hooks.append(linear.register_forward_pre_hook(_round_input))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for linear, weight in zip(linears, originals, strict=True):
            linear.weight.set_value(weight)


def _round_input(layer: Any, inputs: tuple[paddle.Tensor, ...]) -> paddle.Tensor:
    integers, scale = quantize_activations(inputs[0])
    return integers * scale


def nearest_rows(weight: Float32Array) -> Float32Array:
    """``weight`` ``[out, in]`` through INT8 with a scale per output channel."""
    return quantize_rows(weight).to_float32()


def nearest_groups(weight: Float32Array, group_size: int, bits: int = 4) -> Float32Array:
    """``weight`` ``[out, in]`` through symmetric integers, a scale for each ``group_size`` inputs; the last group may be less."""
    largest_integer = 2 ** (bits - 1) - 1
    pieces = [weight[:, start : start + group_size] for start in range(0, weight.shape[1], group_size)]
    rounded = []
    for piece in pieces:
        scale = np.abs(piece).max(axis=1, keepdims=True) / np.float32(largest_integer)
        scale[scale == 0] = 1.0
        rounded.append(np.rint(piece / scale) * scale)
    whole: Float32Array = np.concatenate(rounded, axis=1).astype(np.float32)
    return whole
