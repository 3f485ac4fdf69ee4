"""Reader of one ``.gguf`` file over a memory map.

    0        4          8              16              24
    ├────────┼──────────┼──────────────┼───────────────┼──────────┬─────────┬─────────┬──────────────────────────┐
    │ "GGUF" │ version  │ tensors: u64 │ entries: u64  │ entries  │ tensors │ padding │ data, each tensor padded │
    └────────┴──────────┴──────────────┴───────────────┴──────────┴─────────┴─────────┴──────────────────────────┘
    entry:   key: string, type: u32, value          string:  length: u64, UTF-8
    tensor:  name: string, n: u32, n extents: u64   array:   type: u32, count: u64, values
             (the fastest first), type: u32,
             offset into the data: u64

A row of Q8_0 is blocks of 32 values, ``[scale: f16, 32 x int8]``; :meth:`GgufFile.array` gives uint8 ``[.., blocks, 34]``.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. Parsed here and not by the ``gguf``
package: its reader believes every count (a damaged file makes it run without end) and keeps an object for each token.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_ds.checkpoints.dtypes import NUMPY_DTYPES, Array
from paddle_ds.checkpoints.raw import RawTensor, TensorFile
from paddle_ds.checkpoints.safetensors_file import close_map, map_file, release_pages
from paddle_ds.errors import CorruptFileError, TruncatedFileError, UnsupportedError

#: most bytes before the data; a vocabulary of 256,000 tokens and its merges take about 12 million
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 4
#: what data are aligned to where ``general.alignment`` does not say
ALIGNMENT = 32

Q8_0 = "q8_0"
Q8_0_VALUES = 32
Q8_0_BYTES = 34

#: tensor types that are read, by their number in a file
DTYPES: Mapping[int, str] = {0: "float32", 1: "float16", 8: Q8_0, 30: "bfloat16"}

#: the others, to name them when they are refused
OTHER_TYPES: Mapping[int, str] = {
    **{2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M"},
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"},
}

_STRING, _ARRAY = 8, 9
#: types of metadata that are numbers
_CODES = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_NUMBERS: Mapping[int, np.dtype[Any]] = {number: np.dtype(code) for number, code in _CODES.items()}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where the value of a metadata key lies; it is decoded when somebody asks for it."""

    start: int
    type: int
    #: of an array; ``None`` for a single value
    count: int | None = None


class GgufFile(TensorFile):
    """See :class:`TensorFile`. Everything before the data is checked against the file's length on construction."""

    def __init__(self, path: Path) -> None:
        """Map ``path`` and read what is before its data.

        Raises:
            CheckpointNotFound: no such file.
            TruncatedFileError: the file ends before what it announces.
            CorruptFileError: it is no GGUF file, or contradicts itself.
            UnsupportedError: another version, byte order or tensor type.
        """
        self.path = path
        self._map = map_file(path)
        try:
            self._read_header()
        except BaseException:
            close_map(self._map)
            raise

    def value(self, key: str) -> Any:
        """A metadata value: a number, bool, str or a list of them; ``None`` where there is no such key.

        Raises:
            CorruptFileError: text that is not UTF-8.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.type == _STRING:
            texts = self._texts(key, entry.start, 1 if entry.count is None else entry.count)
            return texts[0] if entry.count is None else texts
        values = np.frombuffer(self._map, _NUMBERS[entry.type], 1 if entry.count is None else entry.count, entry.start)
        # 1e-6 is stored as a float32; the shortest number that is stored so is what its writer meant
        listed = [float(str(value)) for value in values] if values.dtype == np.float32 else values.tolist()
        return listed[0] if entry.count is None else listed

    def header_bytes(self) -> bytes:
        """Everything before the data: what the file says of itself."""
        return self._map[: self._data_start]

    def array(self, name: str) -> Array:
        tensor = self.tensors[name]
        dtype = NUMPY_DTYPES["uint8" if tensor.dtype == Q8_0 else tensor.dtype]
        shape = tensor.shape
        if tensor.dtype == Q8_0:
            shape = (*shape[:-1], shape[-1] // Q8_0_VALUES, Q8_0_BYTES)
        if tensor.nbytes == 0:
            return np.empty(shape, dtype)
        values = np.frombuffer(self._map, dtype, tensor.nbytes // dtype.itemsize, self._begin[name]).reshape(shape)
        return values if values.flags.aligned else values.copy()

    def release(self, name: str) -> None:
        release_pages(self._map, self._begin[name], self.tensors[name].nbytes)

    def close(self) -> None:
        close_map(self._map)

    def _texts(self, key: str, start: int, count: int) -> list[str]:
        texts = []
        try:
            for _ in range(count):
                (length,) = _U64.unpack_from(self._map, start)
                texts.append(self._map[start + 8 : start + 8 + length].decode("utf-8"))
                start += 8 + length
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{self.path}: metadata '{key}': not UTF-8: {error}") from error
        return texts

    def _read_header(self) -> None:
        cursor = _Cursor(self.path, self._map)
        num_tensors = _read_start(cursor)
        self._entries: dict[str, _Entry] = {}
        for _ in range(cursor.u64()):
            key = cursor.text("a metadata key")
            if key in self._entries:
                raise cursor.corrupt(f"metadata '{key}' is there twice; expected it once")
            self._entries[key] = _read_entry(cursor, key)
        found = [_read_tensor(cursor) for _ in range(num_tensors)]
        _refuse_other_types(tensor for _, tensor in found)
        alignment = self._alignment()
        self._data_start = _aligned(cursor.position, alignment)
        self._place(found, alignment)

    def _alignment(self) -> int:
        entry, value = self._entries.get("general.alignment"), self.value("general.alignment")
        if entry is None:
            return ALIGNMENT
        if entry.type != 4 or entry.count is not None or value == 0 or value & (value - 1):
            raise CorruptFileError(f"{self.path}: metadata 'general.alignment' is {value!r}; expected a power of two, as u32")
        return int(value)

    def _place(self, found: list[tuple[int, RawTensor]], alignment: int) -> None:
        """The tensors follow each other without overlaps and holes, and the file holds them all."""
        self.tensors: dict[str, RawTensor] = {}
        self._begin: dict[str, int] = {}
        expected = 0
        for offset, tensor in sorted(found, key=lambda pair: pair[0]):
            where = f"{self.path}: tensor '{tensor.name}'"
            if tensor.name in self.tensors:
                raise CorruptFileError(f"{where} is there twice; expected it once")
            if offset != expected:
                raise CorruptFileError(f"{where} begins at data byte {offset}; expected {expected}, where the one before it ends")
            end = self._data_start + offset + tensor.nbytes
            if end > len(self._map):
                raise TruncatedFileError(f"{where} ends at byte {end}; the file has only {len(self._map)}")
            self.tensors[tensor.name] = tensor
            self._begin[tensor.name] = self._data_start + offset
            expected = _aligned(offset + tensor.nbytes, alignment)


class _Cursor:
    """Reads forward through the header and never beyond the file."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self._map = mapped
        self.position = 0

    def take(self, nbytes: int, what: str) -> int:
        """Pass over ``nbytes``; where they begin."""
        start = self.position
        if start + nbytes > len(self._map):
            raise TruncatedFileError(
                f"{self.path}: {len(self._map)} bytes; expected at least {start + nbytes}, where {what} ends"
            )
        if start + nbytes > MAX_HEADER_BYTES:
            raise self.corrupt(
                f"{what} at byte {start} takes {nbytes} bytes; expected at most {MAX_HEADER_BYTES} before the data"
            )
        self.position = start + nbytes
        return start

    def u32(self) -> int:
        return int(_U32.unpack_from(self._map, self.take(4, "a number"))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self._map, self.take(8, "a number"))[0])

    def raw(self, nbytes: int, what: str) -> bytes:
        start = self.take(nbytes, what)
        return self._map[start : self.position]

    def text(self, what: str) -> str:
        try:
            return self.raw(self.u64(), what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{what} before byte {self.position} is not UTF-8: {error}") from error

    def skip_texts(self, count: int, what: str) -> None:
        for _ in range(count):
            self.take(self.u64(), what)

    def corrupt(self, complaint: str) -> CorruptFileError:
        return CorruptFileError(f"{self.path}: {complaint}")


def _read_start(cursor: _Cursor) -> int:
    """Check what a file begins with; how many tensors it has."""
    magic = cursor.raw(4, "the first word")
    if magic != b"GGUF":
        raise cursor.corrupt(f"begins with {magic!r}; expected b'GGUF'")
    version = cursor.u32()
    if version not in (2, 3):
        is_swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
        found = "its numbers are big-endian" if is_swapped else f"version {version}"
        raise UnsupportedError(f"{cursor.path}: {found}; have: versions 2 and 3, little-endian")
    return cursor.u64()


def _read_entry(cursor: _Cursor, key: str) -> _Entry:
    what = f"metadata '{key}'"
    kind = cursor.u32()
    count = None
    if kind == _ARRAY:
        kind, count = cursor.u32(), cursor.u64()
    if kind == _STRING:
        start = cursor.position
        cursor.skip_texts(1 if count is None else count, what)
        return _Entry(start, kind, count)
    if kind not in _NUMBERS:
        found = "an array of arrays" if kind == _ARRAY else f"of type {kind}"
        raise cursor.corrupt(f"{what} is {found}; expected a number, text, or an array of them")
    return _Entry(cursor.take((1 if count is None else count) * _NUMBERS[kind].itemsize, what), kind, count)


def _read_tensor(cursor: _Cursor) -> tuple[int, RawTensor]:
    """Where in the data a tensor begins, and the tensor."""
    name = cursor.text("the name of a tensor")
    num_dimensions = cursor.u32()
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.corrupt(f"tensor '{name}' has {num_dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
    shape = tuple(reversed([cursor.u64() for _ in range(num_dimensions)]))
    kind = cursor.u32()
    dtype = DTYPES.get(kind) or OTHER_TYPES.get(kind, f"of type {kind}")
    count = math.prod(shape)
    if dtype != Q8_0:
        nbytes = count * NUMPY_DTYPES[dtype].itemsize if dtype in NUMPY_DTYPES else 0
    elif shape[-1] % Q8_0_VALUES:
        raise cursor.corrupt(f"tensor '{name}' is Q8_0 with rows of {shape[-1]} values; expected a multiple of {Q8_0_VALUES}")
    else:
        nbytes = count // Q8_0_VALUES * Q8_0_BYTES
    return cursor.u64(), RawTensor(name, shape, dtype, nbytes, cursor.path)


def _refuse_other_types(tensors: Iterable[RawTensor]) -> None:
    others = [tensor for tensor in tensors if tensor.dtype not in DTYPES.values()]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise UnsupportedError(
            f"{others[0].file}: tensor '{others[0].name}' is {others[0].dtype}{more}; have: F32, F16, BF16, Q8_0"
        )


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
