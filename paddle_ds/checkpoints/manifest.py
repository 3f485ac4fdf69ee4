"""``manifest.json``: whether the tensors of a directory are those that were written, and a name for what a directory holds.

    {"version": 1, "tensors": {"model.norm.weight": {"sha256": "…", "shape": [192], "dtype": "float32", "file": "…"}, …}}

A hash is that of the tensor's bytes in its file. Files are read, not mapped: one that shrinks meanwhile is an error, not a
signal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paddle_ds.checkpoints.safetensors_file import SafetensorsFile
from paddle_ds.errors import (
    CheckpointNotFound,
    CorruptFileError,
    ManifestMismatchError,
    MissingTensorError,
    TruncatedFileError,
    UnexpectedTensorError,
)

FILE_NAME = "manifest.json"
_BLOCK_BYTES = 4 << 20
#: files beside the weights that change what a model answers
_COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_WEIGHT_SUFFIXES = (".safetensors", ".pdparams", ".gguf")


@dataclasses.dataclass(frozen=True)
class ManifestTensor:
    """One line of a manifest."""

    name: str
    sha256: str
    shape: tuple[int, ...]
    dtype: str
    file: str


def parse_manifest(content: bytes, where: str) -> dict[str, ManifestTensor]:
    """The tensors by name.

    Raises:
        CorruptFileError: not a manifest of version 1, or a file name that leads out of the directory.
    """
    try:
        raw = json.loads(content)
        entries = raw["tensors"]
        if raw["version"] != 1 or not entries:
            raise ValueError("expected version 1 and tensors")
        tensors = {name: _parsed(name, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{where}: not a manifest: {error!r}") from error
    return tensors


def _parsed(name: str, entry: Mapping[str, Any]) -> ManifestTensor:
    file = str(entry["file"])
    if file != Path(file).name or file in ("", ".", ".."):
        raise ValueError(f"tensor '{name}' lies in {file!r}; expected a file name without a directory")
    return ManifestTensor(name, str(entry["sha256"]), tuple(map(int, entry["shape"])), str(entry["dtype"]), file)


def read_manifest(directory: Path) -> dict[str, ManifestTensor] | None:
    """The tensors that ``directory`` should hold; ``None`` where it has no manifest.

    Raises:
        CorruptFileError: see :func:`parse_manifest`.
    """
    path = directory / FILE_NAME
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read: {error}") from error


def verify(directory: Path, progress: Callable[[float], None] = lambda share: None) -> bool:
    """Compare every tensor with the manifest. False where there is none to compare with.

    Raises:
        ManifestMismatchError: a tensor has another hash, shape or type.
        MissingTensorError, UnexpectedTensorError: the manifest and the files name different tensors.
        CheckpointError: a file is absent, truncated or contradicts itself.
    """
    expected = read_manifest(directory)
    if expected is None:
        return False
    by_file: dict[str, dict[str, ManifestTensor]] = {}
    for tensor in expected.values():
        by_file.setdefault(tensor.file, {})[tensor.name] = tensor
    for stray in sorted({path.name for path in directory.glob("*.safetensors")} - set(by_file)):
        raise UnexpectedTensorError(f"{directory / stray}: the manifest does not name this file")
    total_bytes = sum((directory / file).stat().st_size for file in by_file if (directory / file).is_file())
    done_bytes = 0
    for file, tensors in by_file.items():
        for num_bytes in _verify_file(directory / file, tensors):
            done_bytes += num_bytes
            progress(min(1.0, done_bytes / max(1, total_bytes)))
    return True


def _verify_file(path: Path, expected: Mapping[str, ManifestTensor]) -> list[int]:
    """Sizes of the tensors that were compared."""
    header = SafetensorsFile(path)
    try:
        found, spans = dict(header.tensors), {name: header.span(name) for name in header.tensors}
    finally:
        header.close()
    for name in expected:
        if name not in found:
            raise MissingTensorError(f"{path}: tensor '{name}' is in the manifest, but not in the file")
    for name, tensor in found.items():
        if name not in expected:
            raise UnexpectedTensorError(f"{path}: tensor '{name}' is not in the manifest")
        wanted = expected[name]
        if (tensor.shape, tensor.dtype) != (wanted.shape, wanted.dtype):
            raise ManifestMismatchError(
                f"{path}: tensor '{name}' is {tensor.dtype} {list(tensor.shape)}; "
                f"the manifest says {wanted.dtype} {list(wanted.shape)}"
            )
    with path.open("rb") as file:
        for name, (begin, num_bytes) in spans.items():
            if hash_span(file.fileno(), begin, num_bytes, path) != expected[name].sha256:
                raise ManifestMismatchError(f"{path}: tensor '{name}' has another hash than manifest.json says")
    return [num_bytes for _, num_bytes in spans.values()]


def hash_span(descriptor: int, begin: int, num_bytes: int, path: Path) -> str:
    """SHA-256 of a range of an open file.

    Raises:
        TruncatedFileError: the file ends before the range does.
    """
    digest = hashlib.sha256()
    end = begin + num_bytes
    while begin < end:
        block = os.pread(descriptor, min(_BLOCK_BYTES, end - begin), begin)
        if not block:
            raise TruncatedFileError(f"{path}: ends at byte {begin}; expected at least {end}")
        digest.update(block)
        begin += len(block)
    return digest.hexdigest()


def weight_version(model: Path) -> str:
    """A name, ``wv_`` and 12 hex digits, that changes with what the model at ``model`` (a directory or a weight file) answers.

    Made from the contents of the manifest and of the configuration and tokenizer files. Where there is no manifest, names, sizes
    and modification times of the weight files take its place: then two copies of the same weights may have different names.

    Raises:
        CheckpointNotFound: there is nothing there.
    """
    directory = model.parent if model.is_file() else model
    if not directory.is_dir():
        raise CheckpointNotFound(f"{model}: no such directory or file")
    state: list[tuple[str, str]] = []
    for name in (FILE_NAME, *_COMPANIONS):
        path = directory / name
        if path.is_file():
            state.append((name, hashlib.sha256(path.read_bytes()).hexdigest()))
    if model.is_file() or not (directory / FILE_NAME).is_file():
        weights = [model] if model.is_file() else sorted(p for p in directory.iterdir() if p.suffix in _WEIGHT_SUFFIXES)
        state += [(path.name, f"{path.stat().st_size} {path.stat().st_mtime_ns}") for path in weights]
    return "wv_" + hashlib.sha256(repr(state).encode()).hexdigest()[:12]
