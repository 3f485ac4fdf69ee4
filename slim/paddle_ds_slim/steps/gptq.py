"""GPTQ (arXiv 2210.17323, algorithm 1): columns are rounded one by one, and each error goes into the columns after it.

    H = X' X + damping * mean(diag) * I           the layer's inputs X, tokens x in
    inverse(H) = U' U, U upper triangular
    for each column i:   e = (w[:, i] - s q) / U[i, i];   w[:, i+1:] -= e U[i, i+1:]

``U`` is the inverse of ``A`` in ``H = A A'`` with ``A`` upper triangular, that is the Cholesky factor of ``H`` read backwards:
one factorisation and one triangular inverse instead of two and a full one. Scales are fixed before the first column, so columns
may be taken in any order (large inputs first) while groups stay contiguous. An input that is never anything but zero tells
nothing; its weights are rounded to nearest (PaddleSlim's ``GPTQ`` sets them to zero, and all of them where there is no data).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from paddle_ds.checkpoints.dtypes import Float32Array, Int8Array
from paddle_ds.errors import QuantizationError
from paddle_ds_slim.block_state import READERS, BlockState
from paddle_ds_slim.recipe import Gptq
from paddle_ds_slim.rounding import Format, absmax_scales, as_run, assembled, rounded

Float64Array = npt.NDArray[np.float64]


def gptq(step: Gptq, state: BlockState) -> None:
    """Round every linear layer of the block; layers that read the same input in the same way share its Hessian."""
    factors: dict[tuple[str, bool], tuple[npt.NDArray[np.intp], Float32Array]] = {}
    for name, form in state.formats.items():
        weight = state.weight(name)
        if form.scheme == "dense":
            state.rounded[name] = rounded(weight, form)
            continue
        key = (READERS[name], form.scheme == "w8a8")
        if key not in factors:
            factors.clear()  # a factor of the down projection is as large as its weight several times over
            factors[key] = _order_and_factor(as_run(state.input_of(name), form.scheme), step, f"layer {state.index}: {name}")
        order, upper = factors[key]
        scales = state.scales.get(name)
        scales = absmax_scales(weight, form) if scales is None else scales
        state.rounded[name] = assembled(_round_columns(weight, scales, form, order, upper, step), scales, form)


def _order_and_factor(inputs: Float32Array, step: Gptq, where: str) -> tuple[npt.NDArray[np.intp], Float32Array]:
    """The order of columns, and ``U`` in that order.

    Raises:
        QuantizationError: the inputs hold NaN or infinity, or their Hessian has no factor even when damped.
    """
    hessian = (inputs.T @ inputs).astype(np.float64)
    if not np.isfinite(hessian).all():
        raise QuantizationError(f"{where}: its calibration inputs hold NaN or infinity, or are too large to multiply")
    diagonal = np.einsum("ii->i", hessian)
    diagonal[diagonal == 0] = 1.0
    diagonal += step.damping * diagonal.mean()
    num_in = len(diagonal)
    order = np.argsort(-diagonal, kind="stable") if step.act_order else np.arange(num_in)
    backwards = order[::-1]
    lower, failed = lapack.dpotrf(np.asfortranarray(hessian[np.ix_(backwards, backwards)]), lower=1, clean=1, overwrite_a=1)
    if failed == 0:
        lower, failed = lapack.dtrtri(lower, lower=1, overwrite_c=1)
    if failed != 0:
        raise QuantizationError(f"{where}: its Hessian has no Cholesky factor; give more calibration text, or a larger damping")
    return order, np.ascontiguousarray(lower[::-1, ::-1], dtype=np.float32)


def _round_columns(
    weight: Float32Array, scales: Float32Array, form: Format, order: npt.NDArray[np.intp], upper: Float32Array, step: Gptq
) -> Int8Array:
    """int8 ``[out, in]`` for ``weight`` and ``scales`` ``[out, G]``."""
    num_out, num_in = weight.shape
    size = num_in // scales.shape[1]
    work = np.ascontiguousarray(weight[:, order].T)  # columns as rows: each is touched whole
    integers = np.empty((num_in, num_out), np.int8)
    for first in range(0, num_in, step.block_columns):
        last = min(first + step.block_columns, num_in)
        errors = np.empty((last - first, num_out), np.float32)
        for column in range(first, last):
            scale = scales[:, order[column] // size]
            values = np.clip(np.rint(work[column] / scale), -form.qmax, form.qmax)
            integers[order[column]] = values
            error = (work[column] - values * scale) / upper[column, column]
            errors[column - first] = error
            work[column + 1 : last] -= upper[column, column + 1 : last, None] * error
        work[last:] -= upper[first:last, last:].T @ errors
    return np.ascontiguousarray(integers.T)
