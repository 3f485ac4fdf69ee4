"""AWQ, as AutoAWQ and gptqmodel write it for their ``gemm`` kernels: 4 bits, groups of inputs, activations in floating point.

    <linear>.qweight  int32 [in, out / 8]   packed along the outputs, unsigned
    <linear>.qzeros   int32 [G, out / 8]    packed in the same way, stored as they are
    <linear>.scales   float [G, out]        G groups of inputs, one after the other

    w[o, k] = (q[k, o] - zero[k // group_size, o]) * scales[k // group_size, o]

The eight outputs of a word lie in the order in which a GPU's kernel wants them::

    bits      0-3  4-7  8-11  12-15  16-19  20-23  24-27  28-31
    output      0    2     4      6      1      3      5      7
"""

from __future__ import annotations

import dataclasses

import numpy as np

from paddle_ds.checkpoints.base import GroupedWeight, Groups, StoredTensor, Weight
from paddle_ds.checkpoints.compressed import unpack_words, words
from paddle_ds.checkpoints.dtypes import Array, Int8Array
from paddle_ds.checkpoints.layout import FileCheckpoint
from paddle_ds.checkpoints.qweight import GroupShape, QuantizationFields, QweightCheckpoint
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import TensorSpec

_BITS = 4
_VERSION = "gemm"
#: where in a word each of its eight outputs lies
_LANES = (0, 4, 1, 5, 2, 6, 3, 7)


class AwqCheckpoint(QweightCheckpoint):
    """See the module's text. ``modules_to_not_convert`` needs no reading: such modules have no ``qweight``."""

    format = "awq"
    method = "awq"

    def read_scheme(self, fields: QuantizationFields) -> None:
        version = fields.get("version")
        if not isinstance(version, str) or version.lower() != _VERSION:
            raise fields.unsupported(f"version is {version!r}", repr(_VERSION))
        self._shape = GroupShape(fields.one_of("bits", _BITS), fields.group_size())
        fields.one_of("zero_point", True, default=True)

    def packing(self, module: str) -> AwqPacking:
        return AwqPacking(module, self._shape)


@dataclasses.dataclass(frozen=True)
class AwqPacking:
    """One linear; see the module's text."""

    module: str
    shape: GroupShape
    scheme: Scheme = "w4a16"

    def parts(self) -> tuple[str, ...]:
        return f"{self.module}.qweight", f"{self.module}.scales", f"{self.module}.qzeros"

    def verify(self, spec: TensorSpec, files: FileCheckpoint) -> StoredTensor:
        num_out, num_in = spec.shape
        num_groups = self.shape.count(num_in)
        packed = files.require(f"{self.module}.qweight", spec, "int32", (num_in, words(num_out, _BITS)))
        files.require(f"{self.module}.qzeros", spec, "int32", (num_groups, words(num_out, _BITS)))
        files.float_type(files.require(f"{self.module}.scales", spec, None, (num_groups, num_out)))
        nbytes = sum(files.require(name, spec).nbytes for name in self.parts())
        groups = Groups(self.shape.size(num_in), num_groups, has_zero_points=True)
        return StoredTensor(spec.name, spec.shape, f"int{_BITS}", nbytes, packed.file, groups)

    def read(self, spec: TensorSpec, files: FileCheckpoint) -> Weight:
        num_out, num_in = spec.shape
        values = np.ascontiguousarray(_unpacked(files.array(f"{self.module}.qweight"), num_out).T)
        zero_points = np.ascontiguousarray(_unpacked(files.array(f"{self.module}.qzeros"), num_out).T).astype(np.int16)
        scales = np.ascontiguousarray(files.scales(f"{self.module}.scales").T)
        return GroupedWeight(values, scales, zero_points, None, _BITS, self.shape.size(num_in))


def _unpacked(packed: Array, num_out: int) -> Int8Array:
    """int32 ``[rows, out / 8]`` -> int8 ``[rows, out]`` less 8, which makes them signed."""
    rows, num_words = packed.shape
    lanes = unpack_words(packed, _BITS, 8 * num_words).reshape(rows, num_words, 8)
    return lanes[:, :, _LANES].reshape(rows, -1)[:, :num_out]
