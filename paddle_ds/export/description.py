"""``export.json``: what an exported directory holds, what runs, and how to call it. No paddle here."""

from __future__ import annotations

import collections
import hashlib
import platform
from pathlib import Path
from typing import Any

import paddle_ds
from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Recipe
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.export.options import ExportOptions
from paddle_ds.text import Tokenizer

FORMAT = "paddle-ds-export"
VERSION = 1
FILE_NAME = "export.json"


def signature(model: ModelConfig, *, all_logits: bool) -> dict[str, Any]:
    """Inputs and outputs in the predictor's order. A name in place of an extent is the host's choice.

    The names of outputs are ours; a predictor calls them ``fetch_name_0`` and so on.
    """
    rows = [model.num_kv_heads, model.head_dim]
    past: dict[str, Any] = {"dtype": "float32", "shape": [model.num_layers, "capacity", *rows]}
    new: dict[str, Any] = {"dtype": "float32", "shape": [model.num_layers, "tokens", *rows]}
    logits_shape = ["tokens", model.vocab_size] if all_logits else [model.vocab_size]
    return {
        "inputs": [
            {"name": "token_ids", "dtype": "int64", "shape": ["tokens"]},
            {"name": "past_length", "dtype": "int64", "shape": [1]},
            {"name": "past_keys", **past},
            {"name": "past_values", **past},
        ],
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": logits_shape},
            {"name": "keys", **new},
            {"name": "values", **new},
        ],
    }


def predictor_settings(options: ExportOptions) -> dict[str, Any]:
    """How the predictor's ``Config`` is to be set on a CPU; ``docs/export.md`` has the reasons."""
    if options.operators == "compiled":
        return {"onednn": True, "delete_passes": []}
    return {"onednn": False, "delete_passes": ["constant_folding_pass"]}


def layers_by_scheme(model: ModelConfig, recipe: Recipe) -> dict[str, int]:
    """Scheme -> how many linear layers and heads have it."""
    names = [spec.name.removesuffix(".weight") for spec in model_specs(model) if spec.role in (Role.LINEAR, Role.HEAD)]
    if model.tie_word_embeddings:
        names.append("lm_head")
    return dict(sorted(collections.Counter(recipe.scheme(name) for name in names).items()))


def tokens(model: ModelConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What a host must know of token ids. Ids from ``num_tokens`` up are padding of the vocabulary and never an answer."""
    eos_ids = {*model.eos_token_ids, *(tokenizer.eos_ids if tokenizer else ())}
    begins_with = None
    if tokenizer is not None and tokenizer.bos_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_id]:
        begins_with = tokenizer.bos_id
    return {
        "num_tokens": tokenizer.num_tokens if tokenizer else model.vocab_size,
        "eos_token_ids": sorted(eos_ids),
        "prompt_begins_with": begins_with,
    }


def model_of(checkpoint: Checkpoint, max_context_tokens: int) -> dict[str, Any]:
    """The model in figures."""
    model = checkpoint.config
    return {
        "name": checkpoint.directory.name,
        "checkpoint_format": checkpoint.format,
        "architecture": model.architecture,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "max_context_tokens": max_context_tokens,
    }


def files_of(directory: Path) -> dict[str, Any]:
    """Size and sha256 of every file that is there."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(directory.iterdir())}


def tools(paddle_version: str) -> dict[str, str]:
    """What wrote it, and for what: a library of operators fits one version of Paddle on one architecture."""
    return {"paddle_ds": paddle_ds.__version__, "paddle": paddle_version, "machine": platform.machine()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
