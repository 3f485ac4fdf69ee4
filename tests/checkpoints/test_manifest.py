"""``manifest.json``: tensors are compared with it, and a version is made from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paddle_ds.checkpoints.manifest import parse_manifest, read_manifest, verify, weight_version
from paddle_ds.checkpoints.safetensors_file import SafetensorsFile
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import (
    CheckpointNotFound,
    CorruptFileError,
    ManifestMismatchError,
    MissingTensorError,
    TruncatedFileError,
    UnexpectedTensorError,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))


def edit(model: Path, change: Any) -> None:
    content = json.loads((model / "manifest.json").read_text())
    change(content)
    (model / "manifest.json").write_text(json.dumps(content))


def test_what_was_written_verifies(model: Path) -> None:
    shares: list[float] = []
    assert verify(model, shares.append)
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1


def test_every_byte_of_every_tensor_counts(model: Path) -> None:
    path = model / "model.safetensors"
    file = SafetensorsFile(path)
    begin, num_bytes = file.span("model.norm.weight")
    file.close()
    for offset in (begin, begin + num_bytes - 1):
        content = bytearray(path.read_bytes())
        content[offset] ^= 1
        (model / "model.safetensors").write_bytes(content)
        with pytest.raises(ManifestMismatchError, match=r"model\.norm\.weight"):
            verify(model)
        content[offset] ^= 1
        path.write_bytes(content)


def test_without_a_manifest_nothing_is_compared(model: Path) -> None:
    (model / "manifest.json").unlink()
    assert not verify(model)
    assert read_manifest(model) is None


def test_a_shorter_file_is_truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruncatedFileError):
        verify(model)


def test_a_missing_file_is_named(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match=r"model\.safetensors"):
        verify(model)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: m["tensors"].pop("model.norm.weight"), UnexpectedTensorError),
        (lambda m: m["tensors"].update(extra=m["tensors"]["model.norm.weight"]), MissingTensorError),
        (lambda m: m["tensors"]["model.norm.weight"].update(shape=[96, 2]), ManifestMismatchError),
        (lambda m: m["tensors"]["model.norm.weight"].update(dtype="float16"), ManifestMismatchError),
        (lambda m: m["tensors"]["model.norm.weight"].update(sha256="0" * 64), ManifestMismatchError),
    ],
    ids=["missing-line", "extra-line", "shape", "type", "hash"],
)
def test_manifest_and_files_must_agree(model: Path, change: Any, error: type[Exception]) -> None:
    edit(model, change)
    with pytest.raises(error):
        verify(model)


def test_a_file_that_the_manifest_does_not_name_is_refused(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model / "more.safetensors")
    with pytest.raises(UnexpectedTensorError, match="more"):
        verify(model)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": 2, "tensors": {"a": {}}}',
        b'{"version": 1, "tensors": {}}',
        b'{"version": 1, "tensors": {"a": 1}}',
        b'{"version": 1, "tensors": {"a": {"sha256": "", "shape": [], "dtype": "int8", "file": "../a"}}}',
        b'{"version": 1, "tensors": {"a": {"sha256": "", "shape": [], "dtype": "int8", "file": ".."}}}',
        b"[" * 100_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(CorruptFileError):
        parse_manifest(content, "manifest.json")


def test_copies_have_the_same_version(model: Path) -> None:
    version = weight_version(model)
    assert version == weight_version(EMBEDDED_MODEL)
    assert version.startswith("wv_")
    assert len(version) == 15


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "tokenizer.json", "generation_config.json"])
def test_what_changes_answers_changes_the_version(model: Path, name: str) -> None:
    before = weight_version(model)
    (model / name).write_bytes((model / name).read_bytes() + b"\n")
    assert weight_version(model) != before


def test_without_a_manifest_the_files_make_the_version(model: Path) -> None:
    (model / "manifest.json").unlink()
    before = weight_version(model)
    assert weight_version(model / "model.safetensors") == before
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes() + b"x")
    assert weight_version(model) != before


def test_nothing_has_no_version(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound):
        weight_version(tmp_path / "nothing")
