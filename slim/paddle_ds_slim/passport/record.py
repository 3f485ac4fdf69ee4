"""The passport: what a checkpoint is worth beside its reference, as records that become JSON. ``docs/passport.md`` explains it.

The names of fields are the keys of the JSON, so they stay as they are; what is new gets a key of its own. ``None`` and values
that are no finite number are ``null``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_ds.config.recipe import Scheme
from paddle_ds.errors import QuantizationError

#: raised when a key changes its meaning
VERSION = 1
#: name of the file in a checkpoint's directory
FILE_NAME = "passport.json"


@dataclasses.dataclass(frozen=True)
class Model:
    """One of the two models. ``quant``: what it ran as."""

    name: str
    format: str
    quant: str
    kv_dtype: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """A figure of both."""

    reference: float | None
    quantized: float | None


@dataclasses.dataclass(frozen=True)
class Change(Pair):
    """… and the relative change: 0.01 is one per cent more than the reference has."""

    increase: float | None

    @classmethod
    def of(cls, reference: float | None, quantized: float | None) -> Change:
        return cls(reference, quantized, quantized / reference - 1 if reference and quantized is not None else None)


@dataclasses.dataclass(frozen=True)
class Ratio(Pair):
    """… and the quantised model's by the reference's."""

    ratio: float | None

    @classmethod
    def of(cls, reference: float | None, quantized: float | None) -> Ratio:
        return cls(reference, quantized, quantized / reference if reference and quantized is not None else None)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """``counts[i]`` values from ``edges[i - 1]`` up to ``edges[i]``; the first and the last count are open to one side."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Divergence:
    """KL(reference || quantised) of next-token distributions, nats, over all predicted tokens of all texts."""

    mean: float
    p99: float
    max: float
    num_tokens: int
    histogram: Histogram


@dataclasses.dataclass(frozen=True)
class Greedy:
    """How long greedy continuations of both models are the same, in tokens. ``whole``: share that is the same to its end."""

    num_prompts: int
    max_tokens: int
    mean: float
    median: float
    whole: float


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """Health of answers. ``closed``: share with ``</think>``, for models that reason. ``loops``: share that goes in circles."""

    num_answers: int
    closed: Pair | None
    loops: Pair
    mean_tokens: Ratio


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """A share of right answers with its 95 % confidence interval."""

    exact_match: float
    low: float
    high: float
    num_right: int


@dataclasses.dataclass(frozen=True)
class Drop:
    """The reference's share minus the quantised model's, with its 95 % interval as the questions are the same."""

    value: float
    low: float
    high: float
    only_reference: int
    only_quantized: int


@dataclasses.dataclass(frozen=True)
class Task:
    """Exact match of one task."""

    num_items: int
    reference: ExactMatch | None
    quantized: ExactMatch
    drop: Drop | None


@dataclasses.dataclass(frozen=True)
class LayerError:
    """Relative errors of one linear layer: see :mod:`paddle_ds_slim.passport.layers`."""

    name: str
    scheme: Scheme
    weight_error: float | None
    output_error: float | None


@dataclasses.dataclass(frozen=True)
class Source:
    """Where data came from, and their sha256: see :func:`paddle_ds_slim.passport.data.digest`."""

    source: str
    sha256: str
    #: predicted tokens of a text, questions of a task, prompts that are continued greedily
    count: int


@dataclasses.dataclass(frozen=True)
class Data:
    """What was measured on."""

    texts: Mapping[str, Source]
    tasks: Mapping[str, Source]
    greedy: Source | None
    settings: Mapping[str, int | float]


@dataclasses.dataclass(frozen=True)
class GateRecord:
    """Budgets, and what was held against them.

    Attributes:
        passed: every budget was held; also where none was set.
        budgets, values: ``max_kl`` -> a number, and so on; only budgets that were set.
        complaints: one sentence for each budget that was not held.
        steps: what was done to hold them.
    """

    passed: bool
    budgets: Mapping[str, float]
    values: Mapping[str, float | None]
    complaints: tuple[str, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Passport:
    """See the module's text."""

    version: int
    reference: Model | None
    quantized: Model
    #: measured by budgets alone, without layers, continuations and speed
    quick: bool
    loss: Mapping[str, Change]
    perplexity: Mapping[str, Change]
    kl: Divergence | None
    top1_agreement: float | None
    greedy: Greedy | None
    reasoning: Reasoning | None
    tasks: Mapping[str, Task]
    layers: tuple[LayerError, ...]
    bytes: Ratio
    load_s: Pair
    decode_tokens_per_s: Ratio | None
    data: Data
    versions: Mapping[str, str | None]
    gate: GateRecord
    #: how the model was made, where the passport was written by what made it
    quantization: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(passport: Passport, path: Path) -> None:
    """Write ``path``, whole or not at all.

    Raises:
        QuantizationError: the disk refuses.
    """
    write_whole(path, passport.to_json())


def write_whole(path: Path, text: str) -> None:
    """Write a file beside ``path`` and rename it.

    Raises:
        QuantizationError: the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise QuantizationError(f"{path}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
