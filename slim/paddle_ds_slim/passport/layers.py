"""How far each linear layer is from the reference's: its weight, and its output on inputs of the reference.

With the factors ``c`` on its inputs, ``r`` on its outputs and the shift ``z`` that were moved between neighbours, and ``Q`` the
rounding of activations in the layer's scheme::

    weight error   ||W_q c / r - W|| / ||W||                               Frobenius norms
    output error   ||(Q(c (x - z)) W_q + b_q - b) / r - x W|| / ||x W||    over all tokens and outputs; biases where z moved them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from paddle_ds.checkpoints.base import Checkpoint, Weight
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.config.recipe import Recipe
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds_slim.passport.folds import Factors, Side, head_factors, layer_factors, ratio, row_blocks, squares, weight_error
from paddle_ds_slim.passport.record import LayerError
from paddle_ds_slim.rounding import as_run


def layer_errors(
    reference: Checkpoint,
    quantized: Checkpoint,
    recipe: Recipe,
    inputs: Mapping[str, Path],
    output_errors: Mapping[str, float] | None,
    on_layer: Callable[[str, int, int], None],
) -> tuple[LayerError, ...]:
    """One record for each linear layer, in the order of a forward pass, then the head where it has a weight or is quantised.

    Args:
        inputs: linear layer -> ``.npy`` file of what it reads in the reference, float32 ``[tokens, in]``.
        output_errors: linear layer -> relative error of its output where that is known; measured on ``inputs`` for the others.
        on_layer: called with a layer's name, the number of layers done and of all.

    Returns:
        nothing where the models are of different shapes.
    """
    if _shapes(reference) != _shapes(quantized):
        return ()
    exact, found = Side(reference, None), Side(quantized, recipe)
    linears = [s.name.removesuffix(".weight") for s in model_specs(quantized.config) if s.role is Role.LINEAR]
    has_head = not quantized.config.tie_word_embeddings or found.scheme("lm_head") != "dense"
    total = len(linears) + has_head
    errors: list[LayerError] = []

    def measure(name: str, factors: Factors) -> None:
        on_layer(name, len(errors), total)
        known = (output_errors or {}).get(name)
        errors.append(_error(exact, found, name, factors, inputs.get(name), known))

    for index in range(quantized.config.num_layers):
        for name, factors in layer_factors(exact, found, index).items():
            measure(name, factors)
    if has_head:
        measure("lm_head", head_factors(exact, found))
    on_layer("", total, total)
    return tuple(errors)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in model_specs(checkpoint.config) if spec.role is not Role.BIAS}


def _error(exact: Side, found: Side, name: str, factors: Factors, inputs: Path | None, known: float | None) -> LayerError:
    wanted, given, scheme = exact.weight(name), found.weight(name), found.scheme(name)
    output = known
    if known is None and inputs is not None:
        x = np.load(inputs)
        shifted = x if factors.shift is None else x - factors.shift
        made_up = None if factors.shift is None else found.bias(name) - exact.bias(name)
        output = _output_error(wanted, given, factors, x, as_run(shifted * factors.inputs, scheme), made_up)
    error = LayerError(name, scheme, weight_error(wanted, given, factors), output)
    exact.release(name)
    found.release(name)
    return error


def _output_error(
    exact: Weight, found: Weight, factors: Factors, x: Float32Array, read: Float32Array, made_up: Float32Array | None
) -> float:
    """``x`` is what the reference's layer reads, ``read`` what the quantised one multiplies, ``made_up`` its bias for a shift."""
    total = difference = 0.0
    for rows, wanted, given in row_blocks(exact, found):
        y = x @ wanted.T
        other = read @ given.T
        if made_up is not None:
            other += made_up[rows]
        total += squares(y)
        difference += squares(other / factors.outputs[rows] - y)
    return ratio(difference, total)
