"""The formats that ``convert`` writes."""

from __future__ import annotations

import typing
from typing import Literal

from paddle_ds.errors import ConfigError
from paddle_ds_slim.exporters.float_safetensors import FloatTarget
from paddle_ds_slim.exporters.gguf_f16 import GgufF16Target
from paddle_ds_slim.exporters.gguf_q8_0 import GgufQ8Target
from paddle_ds_slim.exporters.native import NativeTarget
from paddle_ds_slim.exporters.paddlenlp_int8 import PaddleNLPInt8Target
from paddle_ds_slim.exporters.target import Target

__all__ = ["FORMATS", "Format", "Target", "make_target"]

Format = Literal["native", "float", "paddlenlp-int8", "gguf-q8_0", "gguf-f16"]
FORMATS: tuple[Format, ...] = typing.get_args(Format)

#: format -> the floating-point types it leaves a choice of
_DTYPES = {"float": ("bfloat16", "float16", "float32"), "paddlenlp-int8": ("float16", "bfloat16")}


def make_target(to: str, *, dtype: str | None = None, keep_groups: bool = False) -> Target:
    """The target called ``to``.

    Raises:
        ConfigError: no such format, or an option that it does not have.
    """
    if to not in FORMATS:
        raise ConfigError(f"--to {to!r}; have: {', '.join(FORMATS)}")
    if dtype is not None and dtype not in _DTYPES.get(to, ()):
        have = "; ".join(f"{name}: {', '.join(types)}" for name, types in _DTYPES.items())
        raise ConfigError(f"--dtype {dtype} with --to {to}; have for {have}")
    if keep_groups and to != "native":
        raise ConfigError(f"--keep-groups is for --to native; found --to {to}")
    if to == "native":
        return NativeTarget(keep_groups=keep_groups)
    if to == "float":
        return FloatTarget(dtype)
    if to == "paddlenlp-int8":
        return PaddleNLPInt8Target(dtype or "float16")
    return GgufQ8Target() if to == "gguf-q8_0" else GgufF16Target()
