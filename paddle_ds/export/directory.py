"""From a checkpoint to a directory that Paddle Inference runs without Paddle-DS.

    out/  model.json, model.pdiparams     the program (PIR) and its parameters
          libpaddle_ds_ops.so             the operators, where the program uses them
          export.json                     signature, what runs, versions, sha256 of every file
          tokenizer.json, ...             copied from the checkpoint
          example.py, example.cc          a host in Python and one in C++

Everything is written beside ``out`` and renamed at the end.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle

from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.checkpoints.native import COMPANIONS
from paddle_ds.checkpoints.new_directory import check_absent, new_directory
from paddle_ds.config.engine import EngineConfig
from paddle_ds.engine.assets import recipe_for
from paddle_ds.errors import ConfigMismatchError, KernelError
from paddle_ds.export import compiled, description, example_cc, plain
from paddle_ds.export.options import ExportOptions
from paddle_ds.export.parameters import Parameters
from paddle_ds.export.program import STEM, save_program
from paddle_ds.kernels import build, native
from paddle_ds.logs import fields
from paddle_ds.runtime.loader import load_decoder
from paddle_ds.settings import Settings
from paddle_ds.text import Tokenizer

logger = logging.getLogger(__name__)


def export_checkpoint(
    model: str | Path,
    out: Path,
    options: ExportOptions | None = None,
    settings: Settings | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Write ``model`` (anything that ``open_checkpoint`` takes) to the new directory ``out``; returns what ``export.json`` says.

    The parameters are in memory at once while the program is written.

    Args:
        progress: called with the share of the checkpoint that is read, 0 to 1.

    Raises:
        CheckpointError: the checkpoint is damaged, ``out`` is there already, or the disk refuses.
        KernelError: the compiled operators cannot be had here.
        ConfigError, UnsupportedError: the model cannot be exported as the options ask.
    """
    options = options or ExportOptions()
    out = check_absent(out)
    library = _operators() if options.operators == "compiled" else None
    with open_checkpoint(model, settings) as checkpoint, new_directory(out) as partial:
        report = _write(checkpoint, partial, options, library, progress)
    logger.info("export.written", extra=fields(directory=str(out), quant=report["quant"], operators=options.operators))
    return report


def _operators() -> Path:
    """The library of this process, whose operators are known to Paddle afterwards."""
    try:
        return native.library().path
    except KernelError as error:
        raise KernelError(
            f"the compiled operators cannot be had here: {error.message}; --operators plain exports a program without them"
        ) from error


def _write(
    checkpoint: Checkpoint, directory: Path, options: ExportOptions, library: Path | None, progress: Callable[[float], None]
) -> dict[str, Any]:
    model = checkpoint.config
    max_context_tokens = options.context_tokens(model)
    tokenizer = _tokenizer(checkpoint)
    recipe = recipe_for(checkpoint, EngineConfig(quant=options.quant))
    parameters = Parameters()
    kernels = plain.kernels(parameters) if library is None else compiled.kernels(parameters)
    decoder = load_decoder(checkpoint, recipe, kernels, progress, map_embedding=False)
    saved = save_program(decoder, parameters, directory, max_context_tokens=max_context_tokens, all_logits=options.all_logits)
    if library is not None:
        shutil.copyfile(library, directory / build.LIBRARY)
    for name in COMPANIONS:
        if (checkpoint.directory / name).is_file():
            shutil.copyfile(checkpoint.directory / name, directory / name)
    report = {
        "format": description.FORMAT,
        "version": description.VERSION,
        "program": f"{STEM}.json",
        "parameters": f"{STEM}.pdiparams",
        "library": None if library is None else build.LIBRARY,
        "operators": options.operators,
        "custom_operators": saved.custom_operators,
        "num_operators": saved.num_operators,
        "quant": recipe.name,
        "layers": description.layers_by_scheme(model, recipe),
        "weight_bytes": saved.weight_bytes,
        "model": description.model_of(checkpoint, max_context_tokens),
        "tokens": description.tokens(model, tokenizer),
        **description.signature(model, all_logits=options.all_logits),
        "predictor": description.predictor_settings(options),
        "built_with": description.tools(paddle.__version__),
    }
    shutil.copyfile(Path(__file__).with_name("example.py"), directory / "example.py")
    (directory / "example.cc").write_text(example_cc.source(report), encoding="utf-8")
    report["files"] = description.files_of(directory)
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (directory / description.FILE_NAME).write_text(text, encoding="utf-8")
    return report


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The checkpoint's, checked against the model; ``None`` where it has none, which a program does not need."""
    if not (checkpoint.directory / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.from_dir(checkpoint.directory)
    if tokenizer.num_tokens > checkpoint.config.vocab_size:
        raise ConfigMismatchError(
            f"{checkpoint.directory}: tokenizer.json has {tokenizer.num_tokens} ids, but the model's vocabulary has only "
            f"{checkpoint.config.vocab_size} rows; tokenizer and weights are of different models"
        )
    return tokenizer
