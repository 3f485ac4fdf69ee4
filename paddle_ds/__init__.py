"""Paddle-DS: DeepSeek-R1 distilled models in INT8 on PaddlePaddle.

    from paddle_ds import LLM, SamplingParams

Importing this package is cheap: Paddle itself is loaded when the first :class:`LLM` is made.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from paddle_ds.errors import PaddleDSError

if TYPE_CHECKING:
    from paddle_ds.config.sampling import SamplingParams
    from paddle_ds.engine.llm import LLM, Completion, RequestOutput

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "PaddleDSError", "RequestOutput", "SamplingParams", "__version__"]

# a library is silent unless asked: `paddle_ds.logs.configure()` or your own handler and level
logging.getLogger(__name__).addHandler(logging.NullHandler())
logging.getLogger(__name__).setLevel(logging.WARNING)


def __getattr__(name: str) -> Any:
    if name in {"LLM", "Completion", "RequestOutput"}:
        return getattr(importlib.import_module("paddle_ds.engine.llm"), name)
    if name == "SamplingParams":  # it needs msgspec, and `paddle-ds doctor` runs before anything is installed
        return importlib.import_module("paddle_ds.config.sampling").SamplingParams
    raise AttributeError(f"module 'paddle_ds' has no attribute {name!r}")
