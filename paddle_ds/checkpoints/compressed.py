"""compressed-tensors: llm-compressor's layout, the published W8A8 checkpoints', and ours.

``int-quantized``, INT8 with activations quantised per token as they come (or left in floating point)::

    <linear>.weight            int8  [out, in]     symmetric
    <linear>.weight_scale      float [out, 1]

``pack-quantized``, 4 or 8 bits, activations in floating point::

    <linear>.weight_packed     int32 [out, ceil(in * bits / 32)]   value + 2**(bits - 1), the first value in the lowest bits
    <linear>.weight_scale      float [out, G]      G groups of inputs; one for a scale an output channel
    <linear>.weight_zero_point int32 [ceil(out * bits / 32), G]    asymmetric only; packed along the outputs
    <linear>.weight_g_idx      int32 [in]          activation order only: the group of each input
    <linear>.weight_shape      int64 [2]           out, in

Which linears are quantised, and how, is what ``quantization_config`` in ``config.json`` says: :mod:`.compressed_scheme`.
A quantised cache with fixed scales has ``<attention>.k_scale`` and ``v_scale``, ``[1]`` or ``[kv heads, 1, 1]``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints.base import GroupedWeight, Groups, Int8Weight, KvScales, KvScheme, StoredTensor, Weight
from paddle_ds.checkpoints.compressed_scheme import QUANT_METHOD, Group, read_scheme
from paddle_ds.checkpoints.dtypes import Array, Float32Array, Int8Array
from paddle_ds.checkpoints.layout import HEAD, ChannelPacking, FileCheckpoint, Source, shape_error
from paddle_ds.checkpoints.raw import RawTensor, TensorFiles
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import Role, TensorSpec, model_specs
from paddle_ds.errors import MissingTensorError, UnsupportedError

_ZERO_POINT = ".weight_zero_point"
_KV_SCALES = (".self_attn.k_scale", ".self_attn.v_scale")


class CompressedTensorsCheckpoint(FileCheckpoint):
    """See the module's text."""

    format = "compressed-tensors"

    def __init__(self, directory: Path, config: ModelConfig, files: TensorFiles) -> None:
        assert config.quantization is not None, "claims() is asked first"
        self._scheme = read_scheme(config.quantization, str(directory / "config.json"))
        super().__init__(directory, config, files)
        self._kv_cache = self._read_kv_cache()

    @classmethod
    def claims(cls, config: ModelConfig, files: TensorFiles) -> bool:
        return config.quantization is not None and config.quantization.get("quant_method") == QUANT_METHOD

    def ignored(self) -> frozenset[str]:
        linears = {spec.name for spec in model_specs(self.config) if spec.role in (Role.LINEAR, Role.HEAD)}
        if self.config.tie_word_embeddings:
            linears.add(HEAD)
        return frozenset(name for name in linears if self._group(name) is None)

    def kv_cache(self) -> KvScheme | None:
        return self._kv_cache

    def locate(self, spec: TensorSpec) -> Source:
        group = self._group(spec.name) if spec.role in (Role.LINEAR, Role.HEAD) else None
        if group is None:
            return Source(spec.name)
        if not group.packed:
            return Source.packed(ChannelPacking(spec.name, f"{spec.name}_scale", group.scheme))
        return Source.packed(BitPacking(spec.name.removesuffix(".weight"), group))

    def is_ignorable(self, tensor: RawTensor) -> bool:
        if tensor.name.endswith(_ZERO_POINT):
            # older writers store the zeros of a symmetric scheme; anything else would shift every weight
            if self._files.array(tensor.name).any():
                raise UnsupportedError(f"{tensor.file}: tensor '{tensor.name}' is not zero: asymmetric weights; have: symmetric")
            return True
        if self._scheme.kv_cache_dynamic is False and tensor.name.endswith(_KV_SCALES):
            return True
        return super().is_ignorable(tensor)

    def _group(self, name: str) -> Group | None:
        return self._scheme.group_of(name.removesuffix(".weight"))

    def _read_kv_cache(self) -> KvScheme | None:
        if self._scheme.kv_cache_dynamic is not False:
            return None if self._scheme.kv_cache_dynamic is None else KvScheme(None)
        layers = [f"model.layers.{index}" for index in range(self.config.num_layers)]
        return KvScheme(tuple(KvScales(*(self._kv_scale(layer + name) for name in _KV_SCALES)) for layer in layers))

    def _kv_scale(self, raw: str) -> Float32Array:
        """float32 ``[kv heads]``."""
        if raw not in self._files.tensors:
            raise MissingTensorError(f"{self.directory}: tensor '{raw}' is missing; kv_cache_scheme is not dynamic")
        scale = self.scales(raw).reshape(-1)
        heads = self.config.num_kv_heads
        if scale.size not in (1, heads):
            raise shape_error(self._files.tensors[raw], f"[1] or {[heads, 1, 1]}")
        if not scale.all():
            raise self.corrupt(raw, "found a scale of 0; expected all above")
        return np.ascontiguousarray(np.broadcast_to(scale, (heads,)))


@dataclasses.dataclass(frozen=True)
class BitPacking:
    """``pack-quantized``; see the module's text."""

    module: str
    group: Group

    @property
    def scheme(self) -> Scheme:
        return self.group.scheme

    def parts(self) -> tuple[str, ...]:
        names = ["weight_packed", "weight_scale", "weight_shape"]
        names += [] if self.group.symmetric else ["weight_zero_point"]
        names += ["weight_g_idx"] if self.group.has_group_index else []
        return tuple(f"{self.module}.{name}" for name in names)

    def verify(self, spec: TensorSpec, files: FileCheckpoint) -> StoredTensor:
        num_out, num_in = spec.shape
        bits, group_size = self.group.bits, min(self.group.group_size or num_in, num_in)
        num_groups = -(-num_in // group_size)
        packed = files.require(f"{self.module}.weight_packed", spec, "int32", (num_out, words(num_in, bits)))
        scale = files.require(f"{self.module}.weight_scale", spec, None, (num_out, num_groups))
        files.float_type(scale)
        files.require(f"{self.module}.weight_shape", spec, "int64", (2,))
        if not self.group.symmetric:
            files.require(f"{self.module}.weight_zero_point", spec, "int32", (words(num_out, bits), num_groups))
        if self.group.has_group_index:
            files.require(f"{self.module}.weight_g_idx", spec, None, (num_in,))
        nbytes = sum(files.require(name, spec).nbytes for name in self.parts())
        groups = None
        if not self._is_int8_per_channel(num_groups):
            groups = Groups(group_size, num_groups, not self.group.symmetric, self.group.has_group_index)
        return StoredTensor(spec.name, spec.shape, f"int{bits}", nbytes, packed.file, groups)

    def read(self, spec: TensorSpec, files: FileCheckpoint) -> Weight:
        num_out, num_in = spec.shape
        found = files.array(f"{self.module}.weight_shape").tolist()
        if found != [num_out, num_in]:
            raise files.corrupt(f"{self.module}.weight_shape", f"found {found}; expected {[num_out, num_in]}")
        bits = self.group.bits
        values = unpack_words(files.array(f"{self.module}.weight_packed"), bits, num_in)
        scales = files.scales(f"{self.module}.weight_scale")
        if self._is_int8_per_channel(scales.shape[1]):
            return Int8Weight(values, np.ascontiguousarray(scales[:, 0]))
        zero_points = None
        if not self.group.symmetric:
            packed = files.array(f"{self.module}.weight_zero_point")
            zero_points = np.ascontiguousarray(unpack_words(packed.T, bits, num_out).T).astype(np.int16)
        index = self._group_index(files, scales.shape[1]) if self.group.has_group_index else None
        return GroupedWeight(values, scales, zero_points, index, bits, min(self.group.group_size or num_in, num_in))

    def _is_int8_per_channel(self, num_groups: int) -> bool:
        return self.group.bits == 8 and num_groups == 1 and self.group.symmetric

    def _group_index(self, files: FileCheckpoint, num_groups: int) -> npt.NDArray[np.int32]:
        raw = f"{self.module}.weight_g_idx"
        index = files.array(raw).astype(np.int32)
        if index.size and (index.min() < 0 or index.max() >= num_groups):
            bad = f"found a group {index.min() if index.min() < 0 else index.max()}"
            raise files.corrupt(raw, f"{bad}; expected 0 to {num_groups - 1}")
        return index


def words(count: int, bits: int) -> int:
    """int32 words that ``count`` values of ``bits`` take."""
    return -(-count * bits // 32)


def unpack_words(packed: Array, bits: int, count: int) -> Int8Array:
    """int32 ``[rows, words]`` -> int8 ``[rows, count]``, the stored offset of ``2**(bits - 1)`` taken off."""
    lanes = np.ascontiguousarray(packed).view(np.uint8)  # little-endian: the lowest bits are the first byte
    if bits == 8:
        return np.ascontiguousarray((lanes[:, :count] ^ 128).view(np.int8))
    values = np.empty((lanes.shape[0], 2 * lanes.shape[1]), np.int8)
    values[:, 0::2] = lanes & 15
    values[:, 1::2] = lanes >> 4
    return np.ascontiguousarray(values[:, :count]) - np.int8(8)


def pack_words(values: npt.NDArray[np.signedinteger[Any]], bits: int) -> npt.NDArray[np.int32]:
    """The inverse of :func:`unpack_words`; what is left of the last word is filled with zero bits."""
    rows, count = values.shape
    per_word = 32 // bits
    offset = 1 << (bits - 1)
    assert not values.size or (values.min() >= -offset and values.max() < offset), f"integers of more than {bits} bits"
    lanes: npt.NDArray[np.uint8] = np.zeros((rows, words(count, bits) * per_word), np.uint8)
    lanes[:, :count] = (values.astype(np.int16) + offset).astype(np.uint8)
    if bits == 4:
        lanes = np.bitwise_or(lanes[:, 0::2], lanes[:, 1::2] << np.uint8(4), dtype=np.uint8)
    return np.ascontiguousarray(lanes).view(np.int32)
