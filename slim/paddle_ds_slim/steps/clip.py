"""Cut ranges: a few large weights lose some of their size, all others get finer steps.

For each output channel (or group) the ratio is taken that gives the least error of what the layer puts out, in the manner of
AWQ's search (arXiv 2306.00978, section 3.3). PaddleSlim's ``AutoClip`` searches for 4 bits only and one range for a block of
channels, whatever it is asked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds_slim.block_state import BlockState
from paddle_ds_slim.recipe import Clip
from paddle_ds_slim.rounding import Format, absmax_scales, as_run, to_integers
from paddle_ds_slim.steps.search import spread_rows


def clip(step: Clip, state: BlockState) -> None:
    """Choose the scales of every linear layer that will hold integers."""
    for name, form in state.formats.items():
        if form.scheme == "dense":
            continue
        inputs = as_run(spread_rows(state.input_of(name), step.search_tokens), form.scheme)
        scales, mean_ratio = _best_scales(state.weight(name), inputs, form, step.ratios)
        state.scales[name] = scales
        state.choices[f"{name} clip"] = {"mean_ratio": mean_ratio}


def _best_scales(
    weight: Float32Array, inputs: Float32Array, form: Format, ratios: tuple[float, ...]
) -> tuple[Float32Array, float]:
    """Scales ``[out, G]``, and the mean of the ratios that were chosen."""
    full = absmax_scales(weight, form)
    least = np.full(full.shape, np.inf, np.float64)
    chosen = np.ones(full.shape, np.float32)
    for ratio in ratios:
        scales = full * np.float32(ratio)
        difference = to_integers(weight, scales, form).to_float32() - weight
        error = _group_errors(difference, inputs, full.shape[1])
        better = error < least
        least[better], chosen[better] = error[better], ratio
    return full * chosen, float(chosen.mean())


def _group_errors(difference: Float32Array, inputs: Float32Array, num_groups: int) -> npt.NDArray[np.float64]:
    """What the weights of each group put wrong into their output, squared and summed over tokens: ``[out, G]``."""
    num_out, num_in = difference.shape
    size = num_in // num_groups
    errors = np.empty((num_out, num_groups), np.float64)
    for group in range(num_groups):
        columns = slice(group * size, (group + 1) * size)
        wrong = difference[:, columns] @ inputs[:, columns].T
        errors[:, group] = np.einsum("ot,ot->o", wrong, wrong)
    return errors
