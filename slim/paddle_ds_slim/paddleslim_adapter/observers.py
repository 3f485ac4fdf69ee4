"""Scales from PaddleSlim's observers. A scale here is a step: ``value = integer * scale``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.errors import CalibrationError, UnsupportedError
from paddle_ds_slim.paddleslim_adapter.shipped import load, running

#: name in a recipe -> PaddleSlim's class
ACTIVATION_OBSERVERS = {
    "absmax": "AbsmaxObserver",
    "avg": "AVGObserver",
    "mse": "MSEObserver",
    "emd": "EMDObserver",
    "kl": "KLObserver",
    "hist": "HistObserver",
}
WEIGHT_OBSERVERS = {"absmax": "AbsMaxChannelWiseWeightObserver", "mse": "MSEChannelWiseWeightObserver"}


def observer_scale(name: str, batches: Sequence[npt.NDArray[Any]], bits: int = 8) -> float:
    """One symmetric scale for all values seen, such as a static scale of a KV cache.

    Args:
        name: ``absmax``, ``avg`` (mean over rows of the largest magnitude), ``mse``, ``emd``, ``kl`` or ``hist`` (99.9 %).
        batches: float32 arrays; the first axis counts rows.
        bits: integers go up to ``2 ** (bits - 1) - 1``.

    Returns:
        the scale, above 0; 1 where all values are 0.

    Raises:
        CalibrationError: no values, or NaN or infinity among them.
        UnsupportedError: no observer of this name.
    """
    if name not in ACTIVATION_OBSERVERS:
        raise UnsupportedError(f"observer {name!r}; have: {', '.join(ACTIVATION_OBSERVERS)}")
    arrays = [np.asarray(batch, np.float32) for batch in batches if batch.size]
    if not arrays:
        raise CalibrationError(f"observer {name!r} got no values; calibration needs at least one sequence")
    largest = max(float(np.abs(array).max()) for array in arrays)
    if not np.isfinite(largest):
        raise CalibrationError(
            f"observer {name!r} got NaN or infinity; look for the layer where the model's activations overflow"
        )
    if largest == 0:
        return 1.0
    with running(f"observer {name!r}"):
        observer = _observer(ACTIVATION_OBSERVERS[name], bits, None)
        for values in _as_it_needs(name, arrays):
            observer(paddle.to_tensor(values))
        threshold = min(float(observer.scales()), largest)  # PaddleSlim calls the largest magnitude kept a scale
    qmax = 2 ** (bits - 1) - 1
    if name == "mse":
        whole = [array.reshape(1, -1) for array in arrays]
        errors = [sum(float(_squared_error(part, limit / qmax, qmax).sum()) for part in whole) for limit in (threshold, largest)]
        threshold = threshold if errors[0] < errors[1] else largest  # see _squared_error
    scale: float = threshold / qmax
    return scale


def _as_it_needs(name: str, arrays: Sequence[Float32Array]) -> Sequence[Float32Array]:
    """What to feed an observer so that it sees what it should."""
    if name in ("absmax", "avg"):
        return arrays
    # mse and emd keep the threshold of the last batch alone; the histograms of several batches are merged by resampling
    flat = np.concatenate([array.ravel() for array in arrays])
    if name == "emd":  # its range ends at the largest value, not the largest magnitude: seen with its mirror image, both are one
        return [np.concatenate([flat, -flat])]
    if name == "kl":  # counts bins from the least value as if that were 0
        return [np.append(np.abs(flat), np.float32(0))]
    if name == "hist" and flat.min() == flat.max():  # makes no histogram of equal values
        return [np.append(flat, np.float32(0))]
    return [flat]


def channel_scales(weight: Float32Array, observer: Literal["absmax", "mse"] = "absmax") -> Float32Array:
    """Symmetric INT8 scales of a weight ``[out, in]``, float32 ``[out]``: from largest magnitudes, or of least squared error.

    Raises:
        UnsupportedError: no observer of this name.
    """
    if observer not in WEIGHT_OBSERVERS:
        raise UnsupportedError(f"weight observer {observer!r}; have: {', '.join(WEIGHT_OBSERVERS)}")
    with running(f"weight observer {observer!r}"):
        # the layer only tells the axis of output channels: 1, since Paddle's linear weights are [in, out]
        made = _observer(WEIGHT_OBSERVERS[observer], 8, paddle.nn.Linear(1, 1))
        made(paddle.to_tensor(np.ascontiguousarray(weight.T)))
        limits: Float32Array = made.scales().numpy()
    scales: Float32Array = limits / np.float32(127)
    if observer == "mse":
        widest = channel_scales(weight, "absmax")
        better = _squared_error(weight, scales[:, None], 127) < _squared_error(weight, widest[:, None], 127)
        scales = np.where(better, scales, widest)
    scales[~weight.any(axis=1)] = 1.0  # as round-to-nearest has it; PaddleSlim has 1e-8
    return scales


def _squared_error(values: Float32Array, scale: Float32Array | float, qmax: int) -> npt.NDArray[np.float64]:
    """Sum over each row ``[rows, n]`` of what rounding changes, squared: float64 ``[rows]``.

    PaddleSlim tries ranges from 0.3 to 1 times the largest magnitude, but its counter of float steps ends at 0.98. Where nothing
    should be cut off, its range of "least error" is then worse than the whole one, which is compared here.
    """
    rounded = np.clip(np.rint(values / scale), -qmax, qmax) * scale
    errors: npt.NDArray[np.float64] = np.square(values - rounded, dtype=np.float64).sum(axis=1)
    return errors


def _observer(class_name: str, bits: int, layer: Any) -> Any:
    return getattr(load("paddleslim.quant.observers"), class_name)(quant_bits=bits)._instance(layer)
