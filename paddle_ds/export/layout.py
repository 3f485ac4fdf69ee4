"""What a program that is being built hands to the decoder in place of a paged cache and a batch layout.

The host keeps keys and values as rows, [layers, capacity, kv_heads, head_dim]. A call reads the first ``past_length`` rows of
each layer and returns those of its own tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import paddle


@dataclasses.dataclass(frozen=True)
class ProgramLayout:
    """``cos`` and ``sin`` float32 [T, head_dim // 2]. The decoder asks for slots, too, which rows do not need."""

    cos: Any
    sin: Any
    slots: None = None


@dataclasses.dataclass
class ProgramCache:
    """The host's rows, and what the layers add as they are traced.

    Attributes:
        past_keys, past_values: float32 [layers, capacity, kv_heads, head_dim].
        past_length: int64 [1].
        keys, values: of the layers so far, float32 [T, kv_heads, head_dim] each.
        stacked: of all layers at once, [layers, T, kv_heads, head_dim], where one operator runs them all.
    """

    past_keys: Any
    past_values: Any
    past_length: Any
    keys: list[Any] = dataclasses.field(default_factory=list)
    values: list[Any] = dataclasses.field(default_factory=list)
    stacked: tuple[Any, Any] | None = None

    def new_rows(self) -> tuple[Any, Any]:
        """Keys and values of the new tokens, [layers, T, kv_heads, head_dim]."""
        return self.stacked or (_stack(self.keys), _stack(self.values))


def _stack(rows: list[Any]) -> Any:
    # not paddle.stack, whose oneDNN kernel fails on what a custom operator gives (3.3.1)
    return paddle.concat([part.unsqueeze(0) for part in rows], axis=0)


def keep_rows(cache: ProgramCache, layer: int, key: Any, value: Any, slots: None) -> None:
    """In the place of the engine's ``kv_write``."""
    assert len(cache.keys) == layer
    cache.keys.append(key)
    cache.values.append(value)


def no_cache(*sizes: Any) -> Any:
    """In the place of the engine's ``make_cache``: the host makes it."""
    raise AssertionError("an exported program has no cache of its own")


def num_tokens(rows: Any) -> Any:
    """Length of the first axis, int64 [1]."""
    return paddle.shape(rows)[0:1].astype("int64")


def count(start: Any, end: Any) -> Any:
    """``start``, ``start + 1`` ... ``end - 1``, int64; each a number or a value int64 [1]."""
    return paddle.arange(start, end, dtype="int64")
