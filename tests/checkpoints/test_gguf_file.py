"""The container of GGUF: whatever a file says, it ends in values or in an error that names the file."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import gguf_makers
import makers
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.gguf_file import DTYPES, OTHER_TYPES, GgufFile
from paddle_ds.config.tensors import model_specs


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "cache"))


def read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for spec in model_specs(checkpoint.config):
            checkpoint.read(spec)


def small() -> bytes:
    """A file of 10 kB with a little of everything."""
    config = makers.config_json(makers.LLAMA, hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=8)
    metadata = gguf_makers.gguf_metadata(config)
    stored = gguf_makers.gguf_tensors(config, makers.random_tensors(config), "q8_0")
    metadata |= {
        "general.alignment": ("u32", 32),
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", "qwen2"),
        "tokenizer.ggml.tokens": ("[str]", [*"abcdefg", "ab"]),
        "tokenizer.ggml.token_type": ("[i32]", [1] * 8),
        "tokenizer.ggml.scores": ("[f32]", [0.5] * 8),
        "tokenizer.ggml.merges": ("[str]", ["a b"]),
    }
    return gguf_makers.gguf_bytes(metadata, stored)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole, path = small(), tmp_path / "model.gguf"
    header_bytes = len(whole) // 4
    path.write_bytes(whole)
    read_all(path)
    for length in reversed([*range(header_bytes), *range(header_bytes, len(whole) - 32, 97)]):
        os.truncate(path, length)
        with pytest.raises((errors.TruncatedFileError, errors.CorruptFileError)):
            open_checkpoint(path)


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0xFF])
def test_a_wrong_byte_never_ends_in_another_error(tmp_path: Path, byte: int) -> None:
    whole, path = small(), tmp_path / "model.gguf"
    messages = []
    for position in range(0, len(whole) // 4, 3):
        path.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
        try:
            read_all(path)
        except errors.PaddleDSError as error:
            messages.append(error.message)
    assert len(messages) > 150
    assert all(str(path) in message for message in messages)


def head(num_tensors: int, num_entries: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries) + rest


def tensor_info(extents: list[int], kind: int = 0, offset: int = 0, name: str = "t") -> bytes:
    shape = struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
    return gguf_makers.gguf_text(name) + shape + struct.pack("<IQ", kind, offset)


HUGE = 1 << 62
KEY = gguf_makers.gguf_text("key")
ROW = tensor_info([8]) + bytes(64)

WILD: dict[str, tuple[bytes, type[Exception], str]] = {
    "empty": (b"", errors.TruncatedFileError, "empty"),
    "something else": (b"PK\x03\x04" + bytes(60), errors.CorruptFileError, "begins with b'PK"),
    "version 1": (head(0, 0, version=1), errors.UnsupportedError, "version 1; have: versions 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), errors.UnsupportedError, "big-endian"),
    "many tensors": (head(HUGE, 0), errors.TruncatedFileError, "the name of a tensor|a number"),
    "many entries": (head(0, HUGE), errors.TruncatedFileError, "a number"),
    "long key": (head(0, 1, struct.pack("<Q", HUGE)), errors.TruncatedFileError, "a metadata key"),
    "many numbers": (head(0, 1, KEY + struct.pack("<IIQ", 9, 4, HUGE)), errors.TruncatedFileError, "metadata 'key'"),
    "many texts": (head(0, 1, KEY + struct.pack("<IIQ", 9, 8, HUGE)), errors.TruncatedFileError, "a number"),
    "arrays in an array": (
        head(0, 1, KEY + struct.pack("<IIQ", 9, 9, 1)),
        errors.CorruptFileError,
        "'key' is an array of arrays",
    ),
    "unknown type": (head(0, 1, KEY + struct.pack("<I", 99)), errors.CorruptFileError, "'key' is of type 99"),
    "key twice": (head(0, 2, 2 * (KEY + gguf_makers.gguf_value("u8", 1))), errors.CorruptFileError, "'key' is there twice"),
    "key that is no text": (head(0, 1, struct.pack("<Q", 1) + b"\xff"), errors.CorruptFileError, "not UTF-8"),
    "no dimensions": (head(1, 0, tensor_info([])), errors.CorruptFileError, "'t' has 0 dimensions"),
    "many dimensions": (
        head(1, 0, gguf_makers.gguf_text("t") + struct.pack("<I", 1 << 31)),
        errors.CorruptFileError,
        "'t' has 2147483648 dimensions; expected 1 to 4",
    ),
    "huge tensor": (head(1, 0, tensor_info([HUGE] * 4)), errors.TruncatedFileError, "'t' ends at byte"),
    "tensor far away": (head(1, 0, tensor_info([8], offset=HUGE)), errors.CorruptFileError, "'t' begins at data byte"),
    "tensor twice": (
        head(2, 0, tensor_info([8]) + tensor_info([8], offset=32) + bytes(128)),
        errors.CorruptFileError,
        "'t' is there twice",
    ),
    "overlap": (
        head(2, 0, tensor_info([16]) + tensor_info([8], offset=32, name="u") + bytes(256)),
        errors.CorruptFileError,
        "'u' begins at data byte 32; expected 64",
    ),
    "block that is not whole": (head(1, 0, tensor_info([33], kind=8)), errors.CorruptFileError, "rows of 33 values"),
    "another quantisation": (
        head(2, 0, tensor_info([256], kind=12) + tensor_info([256], kind=14, name="u")),
        errors.UnsupportedError,
        r"'t' is Q4_K \(and 1 more\); have: F32, F16, BF16, Q8_0",
    ),
    "type of the future": (head(1, 0, tensor_info([256], kind=1000)), errors.UnsupportedError, "'t' is of type 1000"),
    "alignment of 0": (
        head(0, 1, gguf_makers.gguf_text("general.alignment") + gguf_makers.gguf_value("u32", 0)),
        errors.CorruptFileError,
        "general.alignment' is 0; expected a power of two",
    ),
    "alignment that is text": (
        head(0, 1, gguf_makers.gguf_text("general.alignment") + gguf_makers.gguf_value("str", "x")),
        errors.CorruptFileError,
        "general.alignment' is 'x'",
    ),
    "nothing at all": (head(0, 0), errors.UnknownArchitectureError, "general.architecture is None"),
}


@pytest.mark.parametrize(("content", "error", "message"), WILD.values(), ids=WILD.keys())
def test_wild_files_are_refused(tmp_path: Path, content: bytes, error: type[errors.PaddleDSError], message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(tmp_path / "model.gguf")
    assert str(tmp_path / "model.gguf") in caught.value.message


def test_a_header_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle_ds.checkpoints.gguf_file.MAX_HEADER_BYTES", 1000)
    content = head(0, 1, KEY + struct.pack("<IIQ", 9, 0, 2000) + bytes(2000))
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(errors.CorruptFileError, match="takes 2000 bytes; expected at most 1000 before the data"):
        open_checkpoint(tmp_path / "model.gguf")


def test_metadata_of_every_type_are_read(tmp_path: Path) -> None:
    values: dict[str, tuple[str, Any]] = {
        **{kind: (kind, 3) for kind in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")},
        **{"f32": ("f32", 0.1), "f64": ("f64", 0.1), "bool": ("bool", True), "text": ("str", "né")},
        **{
            "numbers": ("[i16]", [1, -2]),
            "texts": ("[str]", ["", "né"]),
            "flags": ("[bool]", [True, False]),
            "none": ("[str]", []),
        },
    }
    (tmp_path / "model.gguf").write_bytes(gguf_makers.gguf_bytes(values, {}))
    file = GgufFile(tmp_path / "model.gguf")
    assert {key: file.value(key) for key in values} == {key: value for key, (_, value) in values.items()}
    assert file.value("absent") is None
    file.close()


def test_types_have_the_numbers_and_names_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package")
    canonical = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
    read = {number: canonical[name] for number, name in DTYPES.items()}
    assert read | dict(OTHER_TYPES) == {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
