"""Element types of stored tensors, by name. numpy has no bfloat16: it is held as its 16-bit pattern in ``uint16``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

#: name -> how numpy holds it
NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "uint16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}

#: the types weights come in
FLOATS = ("float32", "bfloat16", "float16")

#: elements looked at together, so that a check needs 2 to 4 MB and not a copy of the tensor
_CHUNK_ELEMENTS = 1 << 20

# sign bit off, then everything from this pattern on has all exponent bits set: infinity or NaN
_NOT_FINITE: Mapping[str, tuple[Any, int, int]] = {
    "float32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
}


def count_not_finite(values: Array, dtype: str) -> int:
    """How many elements of a contiguous array of one of :data:`FLOATS` are NaN or infinite."""
    pattern_type, without_sign, first_bad = _NOT_FINITE[dtype]
    patterns = values.reshape(-1).view(pattern_type)
    buffer = np.empty(min(_CHUNK_ELEMENTS, patterns.size), pattern_type)
    bad = 0
    for start in range(0, patterns.size, _CHUNK_ELEMENTS):
        chunk = patterns[start : start + _CHUNK_ELEMENTS]
        magnitude = np.bitwise_and(chunk, pattern_type(without_sign), out=buffer[: chunk.size])
        if magnitude.max() >= first_bad:
            bad += int(np.count_nonzero(magnitude >= first_bad))
    return bad


def widen(values: Array, dtype: str) -> Float32Array:
    """``values`` of one of :data:`FLOATS` as C-contiguous float32; the same array where it is that already."""
    if dtype == "bfloat16":
        patterns = values.astype(np.uint32, order="C")
        patterns <<= np.uint32(16)
        return patterns.view(np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)


def narrow(values: Float32Array, dtype: str) -> Array:
    """Finite float32 ``values`` as one of :data:`FLOATS`, rounded half to even; bfloat16 as its uint16 pattern."""
    if dtype != "bfloat16":
        return values.astype(NUMPY_DTYPES[dtype])
    patterns = np.ascontiguousarray(values).view(np.uint32)
    round_up = 0x7FFF + ((patterns >> 16) & 1)
    return ((patterns + round_up) >> 16).astype(np.uint16)
