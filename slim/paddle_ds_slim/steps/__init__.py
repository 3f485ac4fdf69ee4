"""What a recipe does to one decoder layer, step by step.

Each step is a published method in numpy; PaddleSlim's own versions, with what is wrong with them, are in ``paddleslim_adapter``.
"""

from __future__ import annotations

from paddle_ds.errors import QuantizationError
from paddle_ds_slim.block_state import BlockState
from paddle_ds_slim.recipe import Awq, Clip, Gptq, Nearest, Qat, Shift, Smooth, Step
from paddle_ds_slim.steps.clip import clip
from paddle_ds_slim.steps.gptq import gptq
from paddle_ds_slim.steps.nearest import nearest
from paddle_ds_slim.steps.shift import shift
from paddle_ds_slim.steps.smooth import awq, smooth

__all__ = ["apply", "is_folding"]


def is_folding(step: Step) -> bool:
    """Whether a step moves factors between weights, which must not change the function."""
    return isinstance(step, (Smooth, Shift, Awq))


def apply(step: Step, state: BlockState) -> None:
    """Run ``step`` on a layer.

    Raises:
        QuantizationError: the layer's numbers do not allow it; the message names the linear layer.
    """
    if isinstance(step, Smooth):
        smooth(step, state)
    elif isinstance(step, Shift):
        shift(state)
    elif isinstance(step, Awq):
        awq(step, state)
    elif isinstance(step, Clip):
        clip(step, state)
    elif isinstance(step, Nearest):
        nearest(state)
    elif isinstance(step, Gptq):
        gptq(step, state)
    else:
        assert isinstance(step, Qat)
        raise QuantizationError("qat trains a whole model; it cannot run on one layer")
