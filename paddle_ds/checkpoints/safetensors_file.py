"""Reader of one ``.safetensors`` file over a memory map.

    0        8              8 + n                                     end of file
    ├────────┼──────────────┼─────────────────────────────────────────┤
    │ n: u64 │ JSON header  │ data: tensors back to back, no holes    │
    └────────┴──────────────┴─────────────────────────────────────────┘
    header: {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, .., "__metadata__": {..}}

Offsets count from the start of the data. The format: https://github.com/huggingface/safetensors#format. Parsed here
and not by the library because pages are given back tensor by tensor, and because PaddleNLP writes bfloat16 as ``U16``.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from paddle_ds.checkpoints.dtypes import NUMPY_DTYPES, Array
from paddle_ds.checkpoints.raw import RawTensor, TensorFile
from paddle_ds.errors import CheckpointNotFound, CorruptFileError, TensorDtypeError, TruncatedFileError

#: most bytes of a header; the format's own limit
MAX_HEADER_BYTES = 100_000_000

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "U16": "uint16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class SafetensorsFile(TensorFile):
    """See :class:`TensorFile`. The header is checked against the file's length before anything is handed out."""

    def __init__(self, path: Path) -> None:
        """Map ``path`` and read its header.

        Raises:
            CheckpointNotFound: no such file.
            TruncatedFileError: the file is shorter than its header says.
            CorruptFileError: the header is absurd, not JSON, or its offsets overlap or leave holes.
            TensorDtypeError: an element type that is not part of the format.
        """
        self.path = path
        self._map = map_file(path)
        self._data_start, header = _read_header(path, self._map)
        self._begin: dict[str, int] = {}
        self.tensors: dict[str, RawTensor] = {}
        spans: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            tensor, begin = _entry(path, name, entry)
            self.tensors[name] = tensor
            self._begin[name] = self._data_start + begin
            spans.append((begin, begin + tensor.nbytes, name))
        _check_spans(path, spans, len(self._map) - self._data_start)

    def array(self, name: str) -> Array:
        tensor = self.tensors[name]
        numpy_dtype = NUMPY_DTYPES[tensor.dtype]
        if tensor.nbytes == 0:
            return np.empty(tensor.shape, numpy_dtype)
        count = tensor.nbytes // numpy_dtype.itemsize
        values = np.frombuffer(self._map, numpy_dtype, count, self._begin[name]).reshape(tensor.shape)
        # the format does not promise alignment; consumers hand pointers to kernels, which do want it
        return values if values.flags.aligned else values.copy()

    def span(self, name: str) -> tuple[int, int]:
        """Where the bytes of a tensor begin in the file, and how many they are."""
        return self._begin[name], self.tensors[name].nbytes

    def release(self, name: str) -> None:
        release_pages(self._map, self._begin[name], self.tensors[name].nbytes)

    def close(self) -> None:
        close_map(self._map)


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file read-only.

    Raises:
        CheckpointNotFound: no such file, or it cannot be opened.
        TruncatedFileError: it is empty.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise TruncatedFileError(f"{path}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointNotFound(f"{path}: cannot be opened: {error.strerror or error}") from error


def release_pages(mapped: mmap.mmap, start: int, nbytes: int) -> None:
    """Drop the resident pages of a range. They are clean pages of a file: whoever looks again gets them back."""
    if nbytes and not mapped.closed and hasattr(mmap, "MADV_DONTNEED"):
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, start + nbytes - first)


def close_map(mapped: mmap.mmap) -> None:
    """Unmap, or leave that to the last array that still looks into the map."""
    with contextlib.suppress(BufferError):
        mapped.close()


def _read_header(path: Path, mapped: mmap.mmap) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the header without its metadata."""
    if len(mapped) < 8:
        raise TruncatedFileError(f"{path}: {len(mapped)} bytes; expected at least 8, the length of the header")
    (header_bytes,) = struct.unpack("<Q", mapped[:8])
    if header_bytes > MAX_HEADER_BYTES:
        raise CorruptFileError(f"{path}: header of {header_bytes} bytes; expected at most {MAX_HEADER_BYTES}")
    data_start = 8 + header_bytes
    if data_start > len(mapped):
        raise TruncatedFileError(f"{path}: {len(mapped)} bytes; expected at least {data_start}, the end of the header")
    try:
        header = json.loads(mapped[8:data_start].decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"{path}: the header is a JSON {type(header).__name__}; expected an object")
    header.pop("__metadata__", None)
    return data_start, header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"name '{next(name for name in names if names.count(name) > 1)}' appears twice")
    return found


def _entry(path: Path, name: str, entry: Any) -> tuple[RawTensor, int]:
    """One line of the header, checked on its own: the tensor and where its bytes begin in the data."""
    where = f"{path}: tensor '{name}'"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFileError(f"{where}: found {entry!r}; expected dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptFileError(f"{where}: shape {shape!r}, data_offsets {offsets!r}; expected whole numbers, begin <= end")
    dtype = DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise TensorDtypeError(f"{where}: dtype {entry['dtype']!r}; expected one of {', '.join(DTYPES)}")
    nbytes = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise CorruptFileError(f"{where}: {offsets[1] - offsets[0]} bytes; expected {nbytes} for {dtype} {list(shape)}")
    return RawTensor(name, tuple(shape), dtype, nbytes, path), offsets[0]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """The tensors cover the data exactly, and the data is all there."""
    expected = 0
    for begin, end, name in sorted(spans):
        if begin != expected:
            kind = "overlaps the tensor before it" if begin < expected else "leaves a hole before it"
            raise CorruptFileError(f"{path}: tensor '{name}' begins at {begin} and {kind}; expected {expected}")
        if end > data_bytes:
            raise TruncatedFileError(f"{path}: tensor '{name}' ends at data byte {end}; the file has only {data_bytes}")
        expected = end
    if expected != data_bytes:
        raise CorruptFileError(f"{path}: {data_bytes - expected} bytes after the last tensor; expected none")
