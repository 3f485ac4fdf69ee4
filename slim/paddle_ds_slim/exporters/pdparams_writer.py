"""Streaming writer of ``.pdparams``: the pickle that ``paddle.save`` makes of a state dict, one array in memory at a time.

    PROTO 4  EMPTY_DICT
      name  array  SETITEM                       once for each tensor
      'StructuredToParameterName@@' {..} SETITEM
    STOP

    array:  numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), b'b')
            BUILD (1, shape, dtype, False, bytes in C order)
    dtype:  numpy.dtype('f2', False, True)  BUILD (3, '<', None, None, None, -1, -1, 0)

Written opcode by opcode, because :mod:`pickle` keeps every payload until the end, and because numpy 2 would name
``numpy._core``, which the numpy that PaddleNLP needs does not have. Opcodes: Lib/pickletools.py of CPython.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paddle_ds.checkpoints.dtypes import Array
from paddle_ds.checkpoints.safetensors_writer import byte_blocks

_NAME_TABLE = "StructuredToParameterName@@"


class PdparamsWriter:
    """Writes one file. Use as a context manager; what is left half-written by an error is the caller's to remove."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._names: list[str] = []
        self._file.write(b"\x80\x04}")

    def write(self, name: str, values: Array) -> None:
        """Append an array; a transposed view is copied block by block."""
        assert name not in self._names, f"{name} is written twice"
        self._names.append(name)
        self._file.write(_text(name) + _array_head(values.shape, values.dtype))
        self._file.write(_bytes_head(values.nbytes))
        for block in byte_blocks(values):
            self._file.write(block)
        self._file.write(b"tbs")  # TUPLE of the state, BUILD, SETITEM

    def __enter__(self) -> PdparamsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            # Paddle's names of parameters; it drops the table on reading, and ours have none but their own
            table = b"".join(_text(name) + _text(name) + b"s" for name in self._names)
            self._file.write(_text(_NAME_TABLE) + b"}" + table + b"s.")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()


def _array_head(shape: Sequence[int], dtype: np.dtype[np.generic]) -> bytes:
    """An array up to the payload of its state, which a MARK has begun."""
    empty = _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    order = "|" if dtype.itemsize == 1 else "<"
    element = _global("numpy", "dtype") + _text(dtype.str[1:]) + b"\x89\x88\x87R"
    element += b"(K\x03" + _text(order) + b"NNN" + _int(-1) + _int(-1) + b"K\x00tb"
    extents = b"(" + b"".join(map(_int, shape)) + b"t"
    return empty + b"(K\x01" + extents + element + b"\x89"


def _global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return (b"\x8c" + struct.pack("<B", len(data)) if len(data) < 256 else b"X" + struct.pack("<I", len(data))) + data


def _int(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _bytes_head(nbytes: int) -> bytes:
    return b"B" + struct.pack("<I", nbytes) if nbytes < 1 << 32 else b"\x8e" + struct.pack("<Q", nbytes)
