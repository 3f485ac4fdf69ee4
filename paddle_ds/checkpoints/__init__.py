"""Checkpoints: from files, or the name of a model on a hub, to verified tensors in canonical form."""

from __future__ import annotations

import re
from pathlib import Path

from paddle_ds.checkpoints.awq import AwqCheckpoint
from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, GroupedWeight, Int8Weight, Progress, StoredTensor, Weight
from paddle_ds.checkpoints.compressed import CompressedTensorsCheckpoint
from paddle_ds.checkpoints.gguf import open_gguf
from paddle_ds.checkpoints.gptq import GptqCheckpoint
from paddle_ds.checkpoints.hf import HuggingFaceCheckpoint
from paddle_ds.checkpoints.layout import FileCheckpoint
from paddle_ds.checkpoints.listing import find_gguf, list_weights, open_weights
from paddle_ds.checkpoints.paddlenlp import PaddleNLPCheckpoint
from paddle_ds.checkpoints.qweight import QWEIGHT
from paddle_ds.checkpoints.raw import TensorFiles
from paddle_ds.config.model import ModelConfig
from paddle_ds.errors import CheckpointNotFound, ConfigMismatchError, UnknownFormatError, UnsupportedError
from paddle_ds.settings import Settings
from paddle_ds.settings import load as load_settings

__all__ = ["Checkpoint", "DenseTensor", "GroupedWeight", "Int8Weight", "Progress", "StoredTensor", "Weight", "open_checkpoint"]

#: asked in this order; a format that reads the ``quantization_config`` it knows comes before those that want none
FORMATS: tuple[type[FileCheckpoint], ...] = (
    CompressedTensorsCheckpoint,
    GptqCheckpoint,
    AwqCheckpoint,
    PaddleNLPCheckpoint,
    HuggingFaceCheckpoint,
)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_checkpoint(model: str | Path, settings: Settings | None = None, progress: Progress | None = None) -> Checkpoint:
    """Open ``model``: a directory, one weight file beside its ``config.json``, a GGUF file, or ``org/name`` on a hub.

    The inventory (names, shapes, types, file lengths) is verified before this returns; values are, as they are read.

    Args:
        settings: says which hub to ask and where to keep what it sends, and a tokenizer made from GGUF; read from the
            environment if not given.
        progress: called while a hub sends files.

    Raises:
        CheckpointError: one of its subclasses names what is wrong, with the tensor and the file.
        UnsupportedError: the checkpoint asks for something that is not implemented.
    """
    path = Path(model).expanduser()
    if not path.exists():
        if not _HUB_NAME.fullmatch(str(model)):
            raise CheckpointNotFound(f"{model}: no such directory or file, and not a hub name such as 'org/name'")
        from paddle_ds.checkpoints.hub import fetch  # deferred: only a hub name needs it

        path = fetch(str(model), settings or load_settings(), progress)
    gguf = find_gguf(path)
    return _open_path(path) if gguf is None else open_gguf(gguf, settings or load_settings())


def _open_path(path: Path) -> Checkpoint:
    config = ModelConfig.from_dir(path.parent if path.is_file() else path)
    listing = list_weights(path)
    files = open_weights(listing)
    try:
        _refuse_unexplained_integers(listing.directory, config, files)
        for candidate in FORMATS:
            if candidate.claims(config, files):
                return candidate(listing.directory, config, files)
        if config.quantization is not None:
            method = config.quantization.get("quant_method", dict(config.quantization))
            raise UnsupportedError(
                f"{listing.directory}: quantization {method!r}; have: compressed-tensors, gptq, awq, PaddleNLP's llm.int8"
            )
        first = next(iter(files.tensors), None)
        names = ", ".join(candidate.format for candidate in FORMATS)
        raise UnknownFormatError(f"{listing.directory}: tensors such as {first!r} fit none of the formats {names}")
    except BaseException:
        files.close()
        raise


def _refuse_unexplained_integers(directory: Path, config: ModelConfig, files: TensorFiles) -> None:
    """Old quantisers wrote what their integers mean to a file of its own, which nobody else reads."""
    packed = next((name for name in files.tensors if name.endswith(QWEIGHT)), None)
    if packed is not None and config.quantization is None:
        where = f"{files.tensors[packed].file}: tensor '{packed}'"
        raise ConfigMismatchError(
            f"{where} is quantised, but {directory / 'config.json'} has no quantization_config. "
            'If there is a quantize_config.json, put its fields there, with "quant_method": "gptq" (or "awq")'
        )
