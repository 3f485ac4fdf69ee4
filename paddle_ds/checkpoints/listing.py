"""Which files of a directory hold the weights, and whether an index agrees with them."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from paddle_ds.checkpoints.pdparams_file import PdparamsFile
from paddle_ds.checkpoints.raw import TensorFile, TensorFiles
from paddle_ds.checkpoints.safetensors_file import SafetensorsFile
from paddle_ds.errors import (
    CheckpointNotFound,
    CorruptFileError,
    MissingTensorError,
    UnexpectedTensorError,
    UnknownFormatError,
)
from paddle_ds.logs import fields

log = logging.getLogger(__name__)

_OPENERS: Mapping[str, type[SafetensorsFile] | type[PdparamsFile]] = {
    ".safetensors": SafetensorsFile,
    ".pdparams": PdparamsFile,
}

GGUF = ".gguf"

#: usual names; a single file before its index, as in Hugging Face's loader, and safetensors before pickles
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model_state.pdparams",
    "model_state.pdparams.index.json",
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.(safetensors|pdparams)")


@dataclasses.dataclass(frozen=True)
class Listing:
    """The weight files of a checkpoint; ``weight_map`` is its index, tensor name -> file name, where there is one."""

    directory: Path
    weights: tuple[Path, ...]
    index: Path | None = None
    weight_map: Mapping[str, str] | None = None


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that ``path`` means: itself, or the only one of a directory without weights of another kind.

    Raises:
        UnknownFormatError: there are several, and nothing else.
    """
    if path.is_file():
        return path if path.suffix == GGUF else None
    if not path.is_dir():
        return None
    found = sorted(file for file in path.iterdir() if file.suffix == GGUF and file.is_file())
    if not found or any(file.suffix in _OPENERS for file in path.iterdir()):
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UnknownFormatError(f"{path}: {names}; expected one *{GGUF}, or name the file itself")
    return found[0]


def list_weights(path: Path) -> Listing:
    """Find the weights of ``path``: a directory, or one file of weights beside its ``config.json``.

    Raises:
        CheckpointNotFound: nothing there, or a shard is missing.
        UnknownFormatError: there are files, but none that we read, or several with nothing that says which.
        CorruptFileError: the index is not JSON or lists no files.
    """
    if path.is_file():
        if path.suffix not in _OPENERS:
            raise UnknownFormatError(f"{path}: have readers for {', '.join(_OPENERS)}, {GGUF}")
        return Listing(path.parent, (path,))
    if not path.is_dir():
        raise CheckpointNotFound(f"{path}: no such directory or file")
    present = [name for name in WEIGHT_FILES if (path / name).is_file()]
    if len(present) > 1:
        log.warning("checkpoint.several_weights", extra=fields(directory=str(path), chosen=present[0], ignored=present[1:]))
    if present:
        chosen = path / present[0]
        return _from_index(chosen) if chosen.suffix == ".json" else Listing(path, (chosen,))
    return _without_usual_names(path)


def open_weights(listing: Listing) -> TensorFiles:
    """Open every file of a listing and compare it with the index.

    Raises:
        MissingTensorError: the index lists a tensor that its shard does not hold.
        UnexpectedTensorError: a shard holds a tensor that the index does not list.
        CorruptFileError: a tensor is in two shards, or a file is damaged.
        TruncatedFileError, TensorDtypeError, UnsafePickleError: as the containers find them.
    """
    files: list[TensorFile] = [_OPENERS[path.suffix](path) for path in listing.weights]
    together = TensorFiles(files)
    if listing.weight_map is not None:
        for name, file_name in listing.weight_map.items():
            found = together.tensors.get(name)
            if found is None or found.file.name != file_name:
                where = f"it is in {found.file.name}" if found else "it is in no shard"
                file = listing.directory / file_name
                raise MissingTensorError(f"{file}: tensor '{name}' is absent; {listing.index} lists it, {where}")
        for name, tensor in together.tensors.items():
            if name not in listing.weight_map:
                raise UnexpectedTensorError(f"{tensor.file}: tensor '{name}' is not listed in {listing.index}")
    return together


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as an index says.

    Raises:
        CorruptFileError: not JSON, or not a map to plain names of weight files.
    """
    try:
        raw = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{index}: not JSON: {error}") from error
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CorruptFileError(f"{index}: no 'weight_map' from tensor names to file names")
    for name in set(weight_map.values()):
        if Path(name).name != name or Path(name).suffix not in _OPENERS:
            raise CorruptFileError(f"{index}: shard {name!r}; expected the plain name of a file beside the index")
    return weight_map


def _from_index(index: Path) -> Listing:
    weight_map = read_index(index)
    weights = tuple(index.parent / name for name in sorted(set(weight_map.values())))
    for shard in weights:
        if not shard.is_file():
            raise CheckpointNotFound(f"{shard}: no such file; {index.name} names it as a shard")
    return Listing(index.parent, weights, index, weight_map)


def _without_usual_names(directory: Path) -> Listing:
    """Shards without an index, or one file of any name."""
    for suffix in _OPENERS:
        found = sorted(file for file in directory.iterdir() if file.suffix == suffix and file.is_file())
        indexes = sorted(directory.glob(f"*{suffix}.index.json"))
        if len(indexes) == 1:
            return _from_index(indexes[0])
        if len(found) == 1 and not _SHARD.fullmatch(found[0].name):
            return Listing(directory, (found[0],))
        shards = [match for file in found if (match := _SHARD.fullmatch(file.name))]
        if shards and len({match["stem"] for match in shards}) == 1:
            _require_all(directory, shards)
            return Listing(directory, tuple(directory / match.string for match in shards))
        if found:
            names = ", ".join(file.name for file in found)
            raise UnknownFormatError(f"{directory}: {names} and no index; expected one file, or name the file itself")
    expected = ", ".join(WEIGHT_FILES)
    raise UnknownFormatError(f"{directory}: no weights; expected {expected}, or one other *{' or *'.join([*_OPENERS, GGUF])}")


def _require_all(directory: Path, shards: list[re.Match[str]]) -> None:
    count = max(int(match["count"]) for match in shards)
    missing = set(range(1, count + 1)) - {int(match["number"]) for match in shards}
    if missing:
        raise CheckpointNotFound(f"{directory}: {len(shards)} of {count} shards; missing number {min(missing)}")
