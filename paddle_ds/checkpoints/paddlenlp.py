"""PaddleNLP checkpoints, ``.pdparams`` or safetensors: other names, and linears the other way round.

    <linear>.weight          float [in, out]     qwen2.layers.0.self_attn.q_proj.weight
    lm_head.weight           float [hidden, vocab]; where it is tied, the embedding once more, [vocab, hidden]
    <linear>.quant_weight    int8  [out, in]     weight_quantize_algo llm.int8: plain round-to-nearest
    <linear>.quant_scale     float [out]         max(abs(row)) / 127

bfloat16 is stored as uint16, in safetensors too. The ``weight_only_int8`` and ``weight_only_int4`` algorithms store
matrices permuted for the tensor cores of a GPU; those are refused. Source: paddlenlp/quantization of 3.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from paddle_ds.checkpoints.dtypes import FLOATS
from paddle_ds.checkpoints.layout import ChannelPacking, FileCheckpoint, Source
from paddle_ds.checkpoints.raw import TensorFiles
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, TensorSpec
from paddle_ds.errors import ConfigMismatchError, UnsupportedError

#: architecture -> what PaddleNLP's names begin with where Hugging Face's begin with ``model``
PREFIXES: Mapping[str, str] = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}

_INT8_ALGORITHM = "llm.int8"
_QUANT_WEIGHT = ".quant_weight"


class PaddleNLPCheckpoint(FileCheckpoint):
    """What ``save_pretrained`` of PaddleNLP writes, in one file or in shards."""

    format = "paddlenlp"
    float_types: ClassVar[Mapping[str, str]] = {**{name: name for name in FLOATS}, "uint16": "bfloat16"}

    def __init__(self, directory: Path, config: ModelConfig, files: TensorFiles) -> None:
        self._prefix = PREFIXES[config.architecture]
        self._raw_names = frozenset(files.tensors)
        _check_algorithm(directory / "config.json", config, self._raw_names)
        for fused in ("self_attn.qkv_proj.", "mlp.gate_up_fused_proj."):
            found = next((name for name in self._raw_names if fused in name), None)
            if found:
                raise UnsupportedError(
                    f"{files.tensors[found].file}: tensor '{found}' is fused; save the model again with "
                    "fuse_attention_qkv=False and fuse_attention_ffn=False"
                )
        super().__init__(directory, config, files)

    @classmethod
    def claims(cls, config: ModelConfig, files: TensorFiles) -> bool:
        if config.quantization is not None and "weight_quantize_algo" not in config.quantization:
            return False
        prefix = PREFIXES[config.architecture] + "."
        return any(name.startswith(prefix) for name in files.tensors)

    def locate(self, spec: TensorSpec) -> Source:
        raw = spec.name
        if raw.startswith("model."):
            raw = f"{self._prefix}.{raw.removeprefix('model.')}"
        if spec.role not in (Role.LINEAR, Role.HEAD):
            return Source(raw)
        module = raw.removesuffix(".weight")
        if module + _QUANT_WEIGHT in self._raw_names:
            return Source.packed(ChannelPacking(module + _QUANT_WEIGHT, f"{module}.quant_scale"))
        return Source(raw, transposed=True)


def _check_algorithm(file: Path, config: ModelConfig, names: frozenset[str]) -> None:
    """INT8 tensors are readable only where the configuration says that their layout is the plain one."""
    algorithm = (config.quantization or {}).get("weight_quantize_algo")
    if algorithm not in (None, _INT8_ALGORITHM):
        raise UnsupportedError(
            f"{file}: weight_quantize_algo {algorithm!r} stores weights permuted or packed for a GPU; "
            f"have: {_INT8_ALGORITHM!r}. Export the model again with it"
        )
    if algorithm is None and any(name.endswith(_QUANT_WEIGHT) for name in names):
        raise ConfigMismatchError(
            f"{file}: the files hold quant_weight tensors, but quantization_config names no weight_quantize_algo, and "
            f'layouts differ. If it was llm.int8, add "quantization_config": {{"weight_quantize_algo": "llm.int8"}}'
        )
