"""GPTQ, as AutoGPTQ and gptqmodel write it: 4 or 8 bits, groups of inputs, activations in floating point.

    <linear>.qweight  int32 [in * bits / 32, out]   packed along the inputs, the first in the lowest bits, unsigned
    <linear>.qzeros   int32 [G, out * bits / 32]    packed along the outputs
    <linear>.scales   float [G, out]                G groups of inputs
    <linear>.g_idx    int32 [in]                    the group of each input; some writers leave it out without desc_act

    w[o, k] = (q[k, o] - zero[g_idx[k], o]) * scales[g_idx[k], o]

A symmetric weight has ``2**(bits - 1)`` for each zero point. ``checkpoint_format`` ``gptq`` stores zero points less one, and the
one was taken off whole words: where a zero point is 0 it borrows from its neighbour, so that it must be added to the
word before that is taken apart. ``gptq_v2`` stores them as they are. Source: gptqmodel 7.5.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints.base import GroupedWeight, Groups, Int8Weight, StoredTensor, Weight
from paddle_ds.checkpoints.compressed import unpack_words, words
from paddle_ds.checkpoints.layout import FileCheckpoint
from paddle_ds.checkpoints.qweight import GroupShape, QuantizationFields, QweightCheckpoint
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import TensorSpec

#: where ``checkpoint_format`` may be said; AutoGPTQ says it nowhere
_FORMAT_KEYS = ("checkpoint_format", "format")

#: bits -> a one in every lane of a word
_ONES = {4: np.uint32(0x11111111), 8: np.uint32(0x01010101)}


class GptqCheckpoint(QweightCheckpoint):
    """See the module's text. ``desc_act`` needs no reading: ``g_idx`` says the same and is checked."""

    format = "gptq"
    method = "gptq"

    def read_scheme(self, fields: QuantizationFields) -> None:
        self._shape = GroupShape(fields.one_of("bits", 4, 8), fields.group_size())
        self._symmetric = bool(fields.one_of("sym", True, False, default=True))
        self._needs_index = bool(fields.one_of("desc_act", True, False, default=False))
        fields.one_of("pack_dtype", "int32", default="int32")
        fields.one_of("is_marlin_format", False, default=False)
        names = [fields.one_of(key, "gptq", "gptq_v2", default="gptq") for key in _FORMAT_KEYS if fields.get(key) is not None]
        if len(set(names)) > 1:
            raise fields.mismatch(f"checkpoint_format is {names[0]!r} and format is {names[1]!r}; expected the same")
        self._zeros_less_one = "gptq_v2" not in names
        overrides = fields.get("dynamic") or {}
        if not isinstance(overrides, dict):
            raise fields.mismatch(f"dynamic is {overrides!r}; expected an object of patterns")
        # a pattern that begins with -: leaves modules alone, and which those are the files say
        other = next((pattern for pattern in overrides if not pattern.startswith("-:")), None)
        if other is not None:
            raise fields.unsupported(f"dynamic quantises {other!r} in another way", "'-:' patterns of modules left alone")

    def packing(self, module: str) -> GptqPacking:
        has_index = self._needs_index or f"{module}.g_idx" in self._files.tensors
        return GptqPacking(module, self._shape, self._symmetric, self._zeros_less_one, has_index)


@dataclasses.dataclass(frozen=True)
class GptqPacking:
    """One linear; see the module's text."""

    module: str
    shape: GroupShape
    symmetric: bool
    #: ``checkpoint_format`` gptq
    zeros_less_one: bool
    #: whether there is a ``g_idx``
    has_index: bool

    @property
    def scheme(self) -> Scheme:
        return "w4a16" if self.shape.bits == 4 else "w8a16"

    def parts(self) -> tuple[str, ...]:
        names = ["qweight", "scales", "qzeros", *(["g_idx"] if self.has_index else [])]
        return tuple(f"{self.module}.{name}" for name in names)

    def verify(self, spec: TensorSpec, files: FileCheckpoint) -> StoredTensor:
        num_out, num_in = spec.shape
        bits, num_groups = self.shape.bits, self.shape.count(num_in)
        packed = files.require(f"{self.module}.qweight", spec, "int32", (words(num_in, bits), num_out))
        files.require(f"{self.module}.qzeros", spec, "int32", (num_groups, words(num_out, bits)))
        files.float_type(files.require(f"{self.module}.scales", spec, None, (num_groups, num_out)))
        if self.has_index:
            files.require(f"{self.module}.g_idx", spec, "int32", (num_in,))
        nbytes = sum(files.require(name, spec).nbytes for name in self.parts())
        groups = None
        if not self._is_int8_per_channel(num_groups):
            has_index = self._group_index(num_in, files) is not None
            groups = Groups(self.shape.size(num_in), num_groups, not self.symmetric, has_index)
        return StoredTensor(spec.name, spec.shape, f"int{bits}", nbytes, packed.file, groups)

    def read(self, spec: TensorSpec, files: FileCheckpoint) -> Weight:
        num_out, num_in = spec.shape
        bits = self.shape.bits
        index = self._group_index(num_in, files)
        zero_points = self._zero_points(num_out, files)
        values = unpack_words(files.array(f"{self.module}.qweight").T, bits, num_in)
        scales = np.ascontiguousarray(files.scales(f"{self.module}.scales").T)
        if self._is_int8_per_channel(scales.shape[1]):
            return Int8Weight(values, scales.reshape(-1))
        return GroupedWeight(values, scales, zero_points, index, bits, self.shape.size(num_in))

    def _is_int8_per_channel(self, num_groups: int) -> bool:
        return self.shape.bits == 8 and num_groups == 1 and self.symmetric

    def _zero_points(self, num_out: int, files: FileCheckpoint) -> npt.NDArray[np.int16] | None:
        """int16 ``[out, G]`` on the scale of the signed values; ``None`` for a symmetric weight, whose are all 0 there."""
        raw, bits = f"{self.module}.qzeros", self.shape.bits
        packed = files.array(raw).view(np.uint32)
        if self.zeros_less_one:
            packed = packed + _ONES[bits]  # wraps, as the subtraction did
        zeros = unpack_words(packed, bits, num_out)
        if not self.symmetric:
            return np.ascontiguousarray(zeros.T).astype(np.int16)
        if zeros.any():
            half = 1 << (bits - 1)
            found = half + int(zeros[zeros != 0][0])
            stored = "gptq" if self.zeros_less_one else "gptq_v2"
            raise files.corrupt(
                raw, f"found a zero point of {found}; expected {half}, since sym is true and checkpoint_format means {stored}"
            )
        return None

    def _group_index(self, num_in: int, files: FileCheckpoint) -> npt.NDArray[np.int32] | None:
        """The group of each input; ``None`` where the groups lie one after the other.

        Raises:
            CorruptFileError: a group that is not there.
        """
        if not self.has_index:
            return None
        raw, num_groups = f"{self.module}.g_idx", self.shape.count(num_in)
        index: npt.NDArray[np.int32] = files.array(raw)
        outside = index[(index < 0) | (index >= num_groups)]
        if outside.size:
            raise files.corrupt(raw, f"found a group {outside[0]}; expected 0 to {num_groups - 1}")
        if np.array_equal(index, np.arange(num_in, dtype=np.int32) // np.int32(self.shape.size(num_in))):
            return None
        return index
