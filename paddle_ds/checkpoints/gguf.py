"""GGUF, llama.cpp's format: one file with everything in it, linears ``[out, in]`` in F32, F16, BF16 or Q8_0.

    token_embd.weight   output_norm.weight   output.weight (where the head is not tied)
    blk.<n>.attn_norm   attn_q   attn_k   attn_v   attn_output   ffn_norm   ffn_gate   ffn_up   ffn_down      .weight, .bias

Q8_0 is 8 bits with a scale for 32 inputs. llama.cpp rotates neighbouring pairs of a Llama's queries and keys where Hugging
Face's code rotates the first half of a head against the second; its converter reorders the rows of ``attn_q`` and ``attn_k``
(``LlamaModel.permute``), and here they are put back. Qwen2's are not reordered.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_ds.checkpoints.base import DenseTensor, GroupedWeight, Groups, StoredTensor, Weight
from paddle_ds.checkpoints.dtypes import Array, Float32Array, count_not_finite, widen
from paddle_ds.checkpoints.gguf_config import EMBEDDING, HEAD, ROPE_FREQS, read_config
from paddle_ds.checkpoints.gguf_file import Q8_0, Q8_0_VALUES, GgufFile
from paddle_ds.checkpoints.gguf_tokenizer import tokenizer_directory
from paddle_ds.checkpoints.hf_config import hf_config
from paddle_ds.checkpoints.layout import FileCheckpoint, Source
from paddle_ds.checkpoints.raw import RawTensor, TensorFiles
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import Role, TensorSpec
from paddle_ds.errors import ConfigMismatchError, TensorNotFiniteError, UnexpectedTensorError
from paddle_ds.settings import Settings

_NAMES: Mapping[str, str] = {
    "model.embed_tokens.weight": EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": HEAD,
}
_MODULES: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_IN_LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<module>.+)\.(?P<part>weight|bias)")
_BLOCK = re.compile(r"blk\.(\d+)\.")


def open_gguf(path: Path, settings: Settings) -> GgufCheckpoint:
    """Open a ``.gguf`` file; its ``directory`` is where its tokenizer is: beside it, or made from its metadata in the cache.

    Raises:
        CheckpointError, UnsupportedError: see :class:`GgufFile`, :func:`read_config` and :class:`FileCheckpoint`.
    """
    file = GgufFile(path)
    try:
        config = read_config(file)
        checkpoint = GgufCheckpoint(path, config, TensorFiles([file]))
        checkpoint.directory = tokenizer_directory(file, checkpoint.raw_config(), Path(settings.cache_dir))
        return checkpoint
    except BaseException:
        file.close()
        raise


class GgufCheckpoint(FileCheckpoint):
    """See the module's text. ``directory`` is the file itself while the inventory is checked, so that errors name it."""

    format = "gguf"

    def __init__(self, path: Path, config: ModelConfig, files: TensorFiles) -> None:
        blocks = {int(match[1]) for name in files.tensors if (match := _BLOCK.match(name))}
        if blocks and max(blocks) + 1 != config.num_layers:
            raise ConfigMismatchError(f"{path}: block_count is {config.num_layers}; the file holds {max(blocks) + 1} blocks")
        super().__init__(path, config, files)

    @classmethod
    def claims(cls, config: ModelConfig, files: TensorFiles) -> bool:
        return any(tensor.file.suffix == ".gguf" for tensor in files.tensors.values())

    def locate(self, spec: TensorSpec) -> Source:
        raw = raw_name(spec.name)
        tensor = self._files.tensors.get(raw)
        if tensor is None or tensor.dtype != Q8_0 or spec.role not in (Role.LINEAR, Role.HEAD, Role.EMBEDDING):
            return Source(raw)
        return Source.packed(BlockPacking(raw))

    def is_ignorable(self, tensor: RawTensor) -> bool:
        if tensor.name != ROPE_FREQS:  # the configuration has it
            raise UnexpectedTensorError(
                f"{tensor.file}: tensor '{tensor.name}' {list(tensor.shape)} is not part of {self.config.architecture} "
                "as the metadata describe it"
            )
        return True

    def schemes(self) -> Mapping[str, Scheme]:
        embedding = "model.embed_tokens"  # looked up, not multiplied: it runs in floating point however it is stored
        return {module: scheme for module, scheme in super().schemes().items() if module != embedding}

    def raw_config(self) -> dict[str, Any]:
        """What a ``config.json`` of the model would say; the file has none."""
        return hf_config(self.config)

    def read(self, spec: TensorSpec) -> Weight:
        weight = super().read(spec)
        if self.config.architecture != "LlamaForCausalLM":
            return weight
        if ".q_proj." in spec.name:
            return _in_halves(weight, self.config.num_heads)
        return _in_halves(weight, self.config.num_kv_heads) if ".k_proj." in spec.name else weight


@dataclasses.dataclass(frozen=True)
class BlockPacking:
    """Q8_0: groups of 32 inputs for a linear; an embedding is dequantised."""

    raw: str
    scheme: Scheme = "w8a16"

    def parts(self) -> tuple[str, ...]:
        return (self.raw,)

    def verify(self, spec: TensorSpec, files: FileCheckpoint) -> StoredTensor:
        tensor = files.require(self.raw, spec, Q8_0, spec.shape)
        if spec.role is Role.EMBEDDING:
            return StoredTensor(spec.name, spec.shape, "float32", tensor.nbytes, tensor.file)
        groups = Groups(Q8_0_VALUES, spec.shape[1] // Q8_0_VALUES)
        return StoredTensor(spec.name, spec.shape, "int8", tensor.nbytes, tensor.file, groups)

    def read(self, spec: TensorSpec, files: FileCheckpoint) -> Weight:
        blocks = files.array(self.raw)  # uint8 [out, G, 34]
        scales = self._scales(np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0], spec, files)
        integers = blocks[:, :, 2:].view(np.int8)
        if spec.role is Role.EMBEDDING:
            wide = integers.astype(np.float32, order="C")
            wide *= scales[:, :, None]
            return DenseTensor(wide.reshape(spec.shape), "float32")
        values = np.ascontiguousarray(integers).reshape(spec.shape)
        return GroupedWeight(values, scales, None, None, bits=8, group_size=Q8_0_VALUES)

    def _scales(self, stored: Array, spec: TensorSpec, files: FileCheckpoint) -> Float32Array:
        bad = count_not_finite(stored, "float16")
        if bad:
            where = f"{files.require(self.raw, spec).file}: tensor '{self.raw}'"
            raise TensorNotFiniteError(f"{where}: found {bad} NaN or infinite of {stored.size} scales; expected none")
        if stored.size and stored.min() < 0:
            raise files.corrupt(self.raw, f"found a scale of {stored.min()}; expected none below zero")
        return widen(stored, "float16")


def raw_name(name: str) -> str:
    """A canonical name as llama.cpp calls it.

    >>> raw_name("model.layers.3.self_attn.o_proj.weight")
    'blk.3.attn_output.weight'
    """
    match = _IN_LAYER.fullmatch(name)
    return _NAMES[name] if match is None else f"blk.{match['layer']}.{_MODULES[match['module']]}.{match['part']}"


def _in_halves(weight: Weight, num_heads: int) -> Weight:
    """Rows of each head from pairs, ``0, h/2, 1, h/2 + 1 ..``, to halves, ``0, 1 .. h/2, h/2 + 1 ..``; a bias likewise."""

    def moved(rows: Array) -> Array:
        pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))

    if isinstance(weight, DenseTensor):
        return dataclasses.replace(weight, values=moved(weight.values))
    assert isinstance(weight, GroupedWeight), "no GGUF type has one scale for a channel"
    return dataclasses.replace(weight, values=moved(weight.values), scales=moved(weight.scales))
