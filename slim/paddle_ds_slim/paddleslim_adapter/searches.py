"""PaddleSlim's searches for smoothing scales and its measure of a layer's error, on NumPy arrays."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import paddle

from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.errors import CalibrationError, QuantizationError, UnsupportedError
from paddle_ds_slim.paddleslim_adapter.shipped import advanced, running

SearchName = Literal["piecewise", "awq"]


def make_search(name: SearchName, bits: int | None = None, group_size: int | None = None, pieces: int = 1) -> Any:
    """PaddleSlim's search object.

    Args:
        bits: of the weights (and, for ``piecewise``, the activations) tried; 8 for ``piecewise``, 4 for ``awq`` if not given.
        group_size: inputs that share a scale in ``awq``, which must divide the inputs; ``None``: one scale an output channel.
        pieces: ``piecewise`` sorts channels by magnitude into so many clusters and searches each.

    Raises:
        UnsupportedError: no search of this name, or an argument that it does not have.
    """
    if name == "piecewise" and group_size is None:
        return advanced("piecewise_search").PieceWiseSearch(k_piece=pieces, bits_length=bits or 8)
    if name == "awq" and pieces == 1:
        # its own default, groups of 128, fails where 128 does not divide the inputs
        method = "abs_max_channel_wise" if group_size is None else "groupwise"
        sizes = {} if group_size is None else {"group_size": group_size}
        return advanced("awq_search").AWQSearch(bits_length=bits or 4, weight_quant_method=method, **sizes)
    raise UnsupportedError(
        f"search {name!r} with group_size {group_size} and {pieces} pieces; have: piecewise without groups, awq with one piece"
    )


def search_smooth_scale(
    name: SearchName,
    x: Float32Array,
    act_absmax: Float32Array,
    weight: Float32Array,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    pieces: int = 1,
) -> Float32Array:
    """The scale per input channel after which rounding changes ``x @ weight.T`` least; use it as ``x / s`` and ``weight * s``.

    Args:
        x: activations float32 ``[tokens, in]``.
        act_absmax: largest (for ``awq`` mean) magnitude of each input channel, float32 ``[in]``.
        weight: float32 ``[out, in]``.

    Returns:
        float32 ``[in]``, above 0.

    Raises:
        CalibrationError: no tokens, or NaN or infinity among them.
        QuantizationError: ``group_size`` does not divide the inputs, or PaddleSlim failed or found no scales.
        UnsupportedError: as :func:`make_search`.
    """
    if not x.size or not np.isfinite(x).all():
        found = "NaN or infinity" if x.size else "no tokens"
        raise CalibrationError(f"search {name!r} got {found}; it needs the finite activations of at least one sequence")
    if group_size is not None and weight.shape[1] % group_size:
        raise QuantizationError(f"search {name!r}: {weight.shape[1]} inputs cannot be cut into groups of {group_size}")
    search = make_search(name, bits, group_size, pieces)
    with running(f"search {name!r}"):
        inputs, largest = paddle.to_tensor(x[None]), paddle.to_tensor(act_absmax[None])
        result = search.search(name, inputs, largest, paddle.to_tensor(np.ascontiguousarray(weight.T)))
        scale: Float32Array = result.numpy().astype(np.float32).reshape(-1)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise QuantizationError(f"search {name!r} found scales that are not above 0 or not finite")
    return scale


def layer_wise_error(layer: Any, x: Float32Array, *, weight_bits: int = 8, activation_bits: int = 8) -> float:
    """Mean squared difference that rounding makes to ``layer(x)``, bias aside, as PaddleSlim's ``LayerWiseQuantError`` has it.

    Weights are rounded per output channel; activations, unlike in our kernels, with one scale for the whole of ``x``.

    Args:
        layer: a ``paddle.nn.Linear``.
        x: float32 ``[..., in]``.
    """
    with running("LayerWiseQuantError"):
        error = advanced("layerwise_quant_error").LayerWiseQuantError(layer, weight_bits, activation_bits)
        error(paddle.to_tensor(x))
        return float(error.loss)
