"""The container: what a file says about itself must be true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from paddle_ds.checkpoints.safetensors_writer import PlannedTensor, SafetensorsWriter


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(5, dtype=np.int8), "c": np.empty((0, 4), "f4")}
    (tmp_path / "x.safetensors").write_bytes(makers.safetensors_bytes(tensors))
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, values in tensors.items():
        np.testing.assert_array_equal(file.array(name), values)
        assert file.tensors[name].shape == values.shape


def test_arrays_are_views_of_the_file_and_stay_valid_after_close(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.float32)
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, [PlannedTensor("a", (4096,), "float32")]) as writer:
        writer.write("a", values)
    file = SafetensorsFile(path)
    view = file.array("a")
    assert not view.flags.owndata
    assert not view.flags.writeable
    file.release("a")
    file.close()
    file.release("a")
    np.testing.assert_array_equal(view, values)


def test_an_unaligned_tensor_is_handed_out_aligned(tmp_path: Path) -> None:
    tensors = {"odd": np.arange(3, dtype=np.int8), "a": np.arange(4, dtype=np.float32)}
    (tmp_path / "x.safetensors").write_bytes(makers.safetensors_bytes(tensors))
    values = SafetensorsFile(tmp_path / "x.safetensors").array("a")
    assert values.flags.aligned
    np.testing.assert_array_equal(values, tensors["a"])


DAMAGES = {
    "empty": (b"", errors.TruncatedFileError, "empty"),
    "seven bytes": (b"\x00" * 7, errors.TruncatedFileError, "at least 8"),
    "header beyond the end": (file_of({"a": entry(0, 8)})[:20], errors.TruncatedFileError, "end of the header"),
    "absurd header length": (b"\xff" * 16, errors.CorruptFileError, str(MAX_HEADER_BYTES)),
    "header not JSON": (file_of(b"{nonsense"), errors.CorruptFileError, "not JSON"),
    "header not UTF-8": (file_of(b"\xff\xfe{}"), errors.CorruptFileError, "not JSON"),
    "header nested too deeply": (file_of(b"[" * 100_000), errors.CorruptFileError, "not JSON"),
    "header a list": (file_of([1, 2]), errors.CorruptFileError, "expected an object"),
    "a name twice": (
        file_of(b'{"a": {"dtype":"I8","shape":[0],"data_offsets":[0,0]}, "a": 1}'),
        errors.CorruptFileError,
        "'a' appears twice",
    ),
    "data missing": (file_of({"a": entry(0, 8)}, b"1234"), errors.TruncatedFileError, "'a'.*only 4"),
    "bytes left over": (file_of({"a": entry(0, 4)}, b"12345678"), errors.CorruptFileError, "4 bytes after"),
    "overlap": (file_of({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12), errors.CorruptFileError, "overlaps"),
    "hole": (file_of({"a": entry(0, 4), "b": entry(8, 12)}, b"x" * 12), errors.CorruptFileError, "hole"),
    "begin after end": (file_of({"a": entry(8, 4, [1])}, b"x" * 8), errors.CorruptFileError, "begin <= end"),
    "negative offset": (file_of({"a": entry(-4, 4)}, b"x" * 8), errors.CorruptFileError, "whole numbers"),
    "negative extent": (file_of({"a": entry(0, 4, [-1])}, b"x" * 4), errors.CorruptFileError, "whole numbers"),
    "fractional extent": (file_of({"a": entry(0, 4, [1.0])}, b"x" * 4), errors.CorruptFileError, "whole numbers"),
    "shape contradicts bytes": (file_of({"a": entry(0, 8, [3])}, b"x" * 8), errors.CorruptFileError, "expected 12"),
    "entry without shape": (file_of({"a": {"dtype": "F32"}}), errors.CorruptFileError, "expected dtype, shape"),
    "unknown dtype": (file_of({"a": entry(0, 4, [4], "F8_E4M3")}, b"x" * 4), errors.TensorDtypeError, "F8_E4M3"),
    "dtype not a name": (file_of({"a": {**entry(0, 4), "dtype": ["F32"]}}, b"x" * 4), errors.TensorDtypeError, "F32"),
}


@pytest.mark.parametrize(("content", "error", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(tmp_path: Path, content: bytes, error: type[Exception], message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", range(0, 200, 13))
def test_any_cut_is_noticed(tmp_path: Path, kept: int) -> None:
    whole = makers.safetensors_bytes({"a": np.arange(8, dtype=np.float32), "b": np.arange(4, dtype=np.int8)})
    assert len(whole) > 200
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole[:kept])
    with pytest.raises(errors.TruncatedFileError):
        SafetensorsFile(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointNotFound, match=r"nothing\.safetensors"):
        SafetensorsFile(tmp_path / "nothing.safetensors")


def test_writer_files_load_in_the_public_library(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    planned = [PlannedTensor("q", (3, 5), "int8"), PlannedTensor("s", (3, 1), "float32")]
    integers, scales = np.arange(15, dtype=np.int8).reshape(3, 5), np.ones((3, 1), np.float32)
    with SafetensorsWriter(tmp_path / "x.safetensors", planned) as writer:
        writer.write("q", integers)
        writer.write("s", scales)
    loaded = load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded["q"], integers)
    np.testing.assert_array_equal(loaded["s"], scales)


def test_writer_refuses_to_forget_a_tensor(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="never written: a"),
        SafetensorsWriter(tmp_path / "x.safetensors", [PlannedTensor("a", (1,), "int8")]),
    ):
        pass
