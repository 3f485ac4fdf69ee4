"""Round-to-nearest, with the scales that a step before it chose, an observer's, or the largest magnitude's."""

from __future__ import annotations

from paddle_ds_slim.block_state import BlockState
from paddle_ds_slim.rounding import rounded


def nearest(state: BlockState) -> None:
    """Round every linear layer of the block."""
    for name, form in state.formats.items():
        state.rounded[name] = rounded(state.weight(name), form, state.scales.get(name))
