"""Reader of one ``.pdparams`` file: a pickled dict of numpy arrays, read over a memory map without unpickling it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from paddle_ds.checkpoints import pickle_machine
from paddle_ds.checkpoints.dtypes import NUMPY_DTYPES, Array
from paddle_ds.checkpoints.pickle_rules import PickledArray, Span
from paddle_ds.checkpoints.raw import RawTensor, TensorFile
from paddle_ds.checkpoints.safetensors_file import close_map, map_file, release_pages
from paddle_ds.errors import CorruptFileError, UnsupportedError

#: paddle.save's table from structured names to parameter names: nothing we need
_NAME_TABLE = "StructuredToParameterName@@"
#: paddle.save under protocol 2 or 3: tensors above 1 GB, torn into slices (the typo is Paddle's)
_TORN_TENSORS = "UnpackBigParamInfor@@"


class PdparamsFile(TensorFile):
    """See :class:`TensorFile`. bfloat16 appears as ``uint16``, as Paddle stores it."""

    def __init__(self, path: Path) -> None:
        """Map ``path`` and look through its pickle.

        Raises:
            CheckpointNotFound: no such file.
            UnsafePickleError: the pickle asks for more than arrays.
            TruncatedFileError: it ends early.
            CorruptFileError: it is no pickle, no dict of arrays, or an array's payload has the wrong length.
            UnsupportedError: tensors torn into slices.
        """
        self.path = path
        self._map = map_file(path)
        content = pickle_machine.run(path, self._map)
        if not isinstance(content, dict):
            raise CorruptFileError(f"{path}: the pickle is a {type(content).__name__}; expected a dict of arrays")
        if _TORN_TENSORS in content:
            raise UnsupportedError(f"{path}: tensors above 1 GB are torn into slices; save it again with protocol=4")
        content.pop(_NAME_TABLE, None)
        self._arrays = {str(name): _array_of(path, name, value) for name, value in content.items()}
        self.tensors: dict[str, RawTensor] = {}
        for name, (array, payload) in self._arrays.items():
            nbytes = math.prod(array.shape) * NUMPY_DTYPES[array.dtype].itemsize
            found = self._count_bytes(payload)
            if found != nbytes:
                where = f"{path}: tensor '{name}'"
                raise CorruptFileError(f"{where}: {found} bytes; {array.dtype} {list(array.shape)} needs {nbytes}")
            self.tensors[name] = RawTensor(name, array.shape, array.dtype, nbytes, path)

    def array(self, name: str) -> Array:
        array, payload = self._arrays[name]
        numpy_dtype = NUMPY_DTYPES[array.dtype]
        if math.prod(array.shape) == 0:
            return np.empty(array.shape, numpy_dtype)
        values: Array
        if payload.is_text:
            values = np.frombuffer(self._decoded(payload), numpy_dtype)
        else:
            values = np.frombuffer(self._map, numpy_dtype, math.prod(array.shape), payload.start)
        values = values.reshape(array.shape, order="F" if array.is_fortran else "C")
        # payloads lie at odd places in a pickle, and consumers hand pointers to kernels
        return np.require(values, requirements=["C", "A"])

    def release(self, name: str) -> None:
        payload = self._arrays[name][1]
        release_pages(self._map, payload.start, payload.nbytes)

    def close(self) -> None:
        close_map(self._map)

    def _decoded(self, payload: Span) -> bytes:
        """The bytes of a payload that protocol 2 wrote as text."""
        try:
            return self._map[payload.start : payload.start + payload.nbytes].decode("utf-8").encode("latin1")
        except UnicodeError as error:
            raise CorruptFileError(f"{self.path}: byte {payload.start}: text that is no bytes: {error}") from error

    def _count_bytes(self, payload: Span) -> int:
        return len(self._decoded(payload)) if payload.is_text else payload.nbytes


def _array_of(path: Path, name: object, value: Any) -> tuple[PickledArray, Span]:
    """The array behind a value; outside a plain state dict paddle.save writes ``(parameter name, array)``."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    if not isinstance(value, PickledArray) or value.payload is None:
        raise CorruptFileError(f"{path}: entry '{name}' is a {type(value).__name__}; expected an array")
    return value, value.payload
