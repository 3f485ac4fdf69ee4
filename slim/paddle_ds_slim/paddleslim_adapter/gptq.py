"""``GPTQ`` (arXiv 2210.17323), layer by layer: each linear layer sees what the layers rounded before it send."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from paddle_ds.errors import QuantizationError, UnsupportedError
from paddle_ds.logs import fields
from paddle_ds_slim.paddlenlp_model import LINEAR_GROUPS, block_linears, blocks_of, embed, run_block
from paddle_ds_slim.paddleslim_adapter.folds import Batch, sequences
from paddle_ds_slim.paddleslim_adapter.shipped import advanced, running

logger = logging.getLogger(__name__)


def gptq(layer: Any, batches: Sequence[Batch], bits: int = 4, group_size: int | None = None, actorder: bool = True) -> None:
    """Replace the weights of a model's (or a decoder layer's) linear layers by rounded ones, in floating point.

    PaddleSlim throws integers and scales away. With ``actorder`` and a ``group_size`` a group is not contiguous, so they cannot
    be told from the weights either: for measuring only.

    Args:
        group_size: inputs that share a scale, the last group may be shorter; ``None``: one scale for each output channel.
        actorder: round inputs with large activations first.

    Raises:
        CalibrationError: no data. PaddleSlim would set every weight to 0 and say nothing.
        QuantizationError: PaddleSlim failed, or left NaN or infinity.
        UnsupportedError: ``bits`` is neither 4 nor 8, or ``group_size`` is not positive.
    """
    if bits not in (4, 8) or (group_size is not None and group_size < 1):
        raise UnsupportedError(
            f"GPTQ with {bits} bits and groups of {group_size}; have: 4 or 8 bits, groups of 1 and more inputs"
        )
    rows = sequences(batches)
    hidden = rows if hasattr(layer, "layer_index") else [embed(layer, row) for row in rows]
    _warn_of_few_tokens(blocks_of(layer)[0], sum(row.shape[1] for row in hidden))
    for block in blocks_of(layer):
        for names in LINEAR_GROUPS:
            with _wrapped(block, names, bits) as wrappers:
                for row in hidden:
                    run_block(block, row)
                for name, wrapper in wrappers.items():
                    _round(f"layer {block.layer_index} {name}", wrapper, group_size, actorder)
        hidden = [run_block(block, row) for row in hidden]


@contextlib.contextmanager
def _wrapped(block: Any, names: Sequence[str], bits: int) -> Iterator[dict[str, Any]]:
    """The linear layers of these names inside PaddleSlim's collectors, out of which they come again, whatever happens."""
    linears = block_linears(block)
    wrappers = {name: advanced("gptq").GPTQ(linears[name], quant_bits=bits) for name in names}
    try:
        for name, wrapper in wrappers.items():
            _replace(block, name, wrapper)
        yield wrappers
    finally:
        for name in names:
            _replace(block, name, linears[name])


def _replace(block: Any, name: str, layer: Any) -> None:
    part, _, attribute = name.partition(".")
    setattr(getattr(block, part), attribute, layer)


def _round(where: str, wrapper: Any, group_size: int | None, actorder: bool) -> None:
    with running(f"GPTQ of {where}"):
        wrapper.fasterquant(groupsize=-1 if group_size is None else group_size, actorder=actorder)
    if not np.isfinite(wrapper.layer.weight.numpy()).all():
        raise QuantizationError(f"{where}: PaddleSlim's GPTQ left NaN or infinity; calibrate with other or more data")


def _warn_of_few_tokens(block: Any, num_tokens: int) -> None:
    """Fewer tokens than inputs leave the Hessian without full rank; the result may then be worse than plain rounding."""
    most = max(linear.weight.shape[0] for linear in block_linears(block).values())
    if num_tokens < most:
        logger.warning("gptq.few_tokens", extra=fields(tokens=num_tokens, wanted=most))
