"""Traces a decoder into a static program and saves it with its parameters.

token_ids int64 [T]    past_length int64 [1]    past_keys, past_values float32 [layers, capacity, kv_heads, head_dim]
    │                        │                                     │
    └── embedding ─── layers, positions past_length .. past_length + T ─── norm ─── head
                          │                                                           │
    keys, values float32 [layers, T, kv_heads, head_dim]        logits float32 [vocab] or [T, vocab]
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_ds.errors import CheckpointError, UnsupportedError
from paddle_ds.export import compiled
from paddle_ds.export.layout import ProgramCache, ProgramLayout, count, num_tokens
from paddle_ds.export.parameters import Parameter, Parameters
from paddle_ds.kernels.layout import BatchLayout
from paddle_ds.layers import Embedding, RotaryTable
from paddle_ds.models import Decoder

#: stem of the two files
STEM = "model"

INPUTS = ("token_ids", "past_length", "past_keys", "past_values")
#: in the order in which a predictor has them; the names that Paddle gives them say nothing
OUTPUTS = ("logits", "keys", "values")


@dataclasses.dataclass(frozen=True)
class SavedProgram:
    """What is in the files.

    Attributes:
        custom_operators: name -> how many times it stands in the program.
        num_operators: all, Paddle's own included.
        weight_bytes: parameters by dtype.
    """

    custom_operators: dict[str, int]
    num_operators: int
    weight_bytes: dict[str, int]


def save_program(
    decoder: Decoder, parameters: Parameters, directory: Path, *, max_context_tokens: int, all_logits: bool
) -> SavedProgram:
    """Write ``model.json`` and ``model.pdiparams`` to ``directory``.

    Args:
        decoder: made with the operators of :mod:`compiled` or :mod:`plain` over ``parameters``, and not loaded for computing.
        max_context_tokens: positions that the program knows.
        all_logits: of every new token, not of the last alone.

    Raises:
        CheckpointError: Paddle cannot write the files.
        UnsupportedError: Paddle is set to its old format.
    """
    compiled.fuse(decoder, parameters)
    cos, sin = RotaryTable(decoder.config).cos_sin(np.arange(max_context_tokens))
    tables = parameters.array(cos, "cos"), parameters.array(sin, "sin")
    assert isinstance(decoder.embedding, Embedding)
    embedding = parameters.tensor(decoder.embedding.weight, "embedding")
    program = paddle.static.Program()
    with _static_mode(), paddle.static.scope_guard(paddle.static.Scope()):
        with paddle.static.program_guard(program, paddle.static.Program()):
            feeds, fetches = _trace(decoder, embedding, tables, all_logits)
        executor = paddle.static.Executor(paddle.CPUPlace())
        try:
            paddle.static.save_inference_model(str(directory / STEM), feeds, fetches, executor, program=program)
        except RuntimeError as error:  # what Paddle makes of a full disk
            raise CheckpointError(f"{directory}: Paddle cannot write the program: {error}") from error
    names = [operator.name() for operator in program.global_block().ops]
    custom = collections.Counter(name.removeprefix("custom_op.") for name in names if name.startswith("custom_op."))
    return SavedProgram(dict(sorted(custom.items())), len(names), parameters.bytes_by_dtype)


def _trace(decoder: Decoder, embedding: Parameter, tables: tuple[Parameter, Parameter], all_logits: bool) -> tuple[Any, Any]:
    config = decoder.config
    shape = [config.num_layers, -1, config.num_kv_heads, config.head_dim]
    ids = paddle.static.data("token_ids", [-1], "int64")
    past = paddle.static.data("past_length", [1], "int64")
    past_keys = paddle.static.data("past_keys", shape, "float32")
    past_values = paddle.static.data("past_values", shape, "float32")
    positions = count(past, past + num_tokens(ids))
    cos, sin = (F.embedding(positions, table.value()) for table in tables)
    # the table is read by the program's own operator, which checks the ids
    decoder.embedding = typing.cast(Embedding, lambda ids: F.embedding(ids, embedding.value()).astype("float32"))
    cache = ProgramCache(past_keys, past_values, past)
    hidden = decoder.hidden(ids, typing.cast(Any, cache), typing.cast(BatchLayout, ProgramLayout(cos, sin)))
    logits = decoder.logits(hidden) if all_logits else decoder.logits(hidden[-1:]).reshape([config.vocab_size])
    return [ids, past, past_keys, past_values], [logits, *cache.new_rows()]


@contextlib.contextmanager
def _static_mode() -> Iterator[None]:
    """Paddle builds programs in here, and computes at once again afterwards.

    Raises:
        UnsupportedError: it would build them in its old format.
    """
    paddle.enable_static()
    try:
        if not paddle.framework.in_pir_mode():
            raise UnsupportedError(
                "FLAGS_enable_pir_api is off; programs are exported in Paddle's new format only, so leave it unset"
            )
        with warnings.catch_warnings():
            # Paddle's own Python code asks values of a program where they are
            warnings.filterwarnings("ignore", "Tensor do not have 'place' interface", UserWarning)
            yield
    finally:
        paddle.disable_static()
