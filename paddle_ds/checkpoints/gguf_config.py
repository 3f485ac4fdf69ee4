"""What the metadata of a GGUF file say about the model, as a ``ModelConfig``.

Keys begin with the architecture: ``llama.block_count``. They are as llama.cpp's converter writes and its loader reads them; see
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Llama 3.1's rotary scaling is no metadata but a tensor,
``rope_freqs.weight`` ``[head_dim / 2]``: what each frequency is divided by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints.gguf_file import Q8_0, GgufFile
from paddle_ds.config.model import ModelConfig
from paddle_ds.errors import (
    ConfigMismatchError,
    MissingTensorError,
    TensorDtypeError,
    TensorShapeError,
    UnknownArchitectureError,
    UnsupportedError,
)

Float64Array = npt.NDArray[np.float64]

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
ROPE_FREQS = "rope_freqs.weight"

#: ``general.architecture`` -> Hugging Face's
ARCHITECTURES: Mapping[str, str] = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

#: keys of an architecture that would change what is computed, and the value with which they do not
_MUST_BE: Mapping[str, Any] = {
    "expert_count": 0,
    "attention.causal": True,
    "attention.sliding_window": 0,
    "attention.max_alibi_bias": 0,
    "attention.clamp_kqv": 0,
    "attention.scale": 0,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "logit_scale": 0,
    "residual_scale": 0,
    "embedding_scale": 0,
    "use_parallel_residual": False,
    "rope.scaling.alpha": 0,
    "rope.scaling.attn_factor": 1,
    "rope.scaling.yarn_attn_factor": 1,
    "rope.scaling.yarn_ext_factor": 1,
    "rope.scaling.yarn_log_multiplier": 0,
}

#: tokens that end an answer; llama.cpp stops at each of them
_ENDS = ("eos", "eot", "eom")

#: of every Llama since 3.1; a file keeps neither them nor the original context length, but only what they lead to
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_LENGTH = 8192
_TOLERANCE = 1e-5
#: above every context length that a model may have had
_MAX_LENGTH = 1 << 30

_MAX_SHOWN = 80


def read_config(file: GgufFile) -> ModelConfig:
    """The model's shape.

    Raises:
        UnknownArchitectureError: neither Llama nor Qwen2.
        UnsupportedError: a feature that is not implemented, such as experts.
        ConfigMismatchError: a value is missing, of another type or contradicts another.
        MissingTensorError: there is no embedding.
    """
    architecture = file.value("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UnknownArchitectureError(
            f"{file.path}: general.architecture is {shown(architecture)}; have: {', '.join(ARCHITECTURES)}"
        )
    metadata = _Metadata(file, architecture)
    _refuse_unsupported(metadata, file)
    embedding = file.tensors.get(EMBEDDING)
    if embedding is None:
        raise MissingTensorError(f"{file.path}: tensor '{EMBEDDING}' is missing")
    hidden_size, num_heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    fields = {
        "architectures": [ARCHITECTURES[architecture]],
        "hidden_size": hidden_size,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", num_heads),
        "head_dim": _head_dim(metadata, hidden_size, num_heads),
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": metadata.integer("context_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": HEAD not in file.tensors,
        "bos_token_id": metadata.token_id("bos"),
        "eos_token_id": list(dict.fromkeys(id_ for name in _ENDS if (id_ := metadata.token_id(name)) is not None)),
        "torch_dtype": "float32" if embedding.dtype == Q8_0 else embedding.dtype,
    }
    if architecture == "llama":
        fields["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        fields["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    config = ModelConfig.from_dict(fields, str(file.path))
    scaling = _rope_scaling(metadata, file, config)
    return ModelConfig.from_dict({**fields, "rope_scaling": scaling}, str(file.path)) if scaling else config


def shown(value: object) -> str:
    """A metadata value for an error message; it may be an array of a whole vocabulary."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


class _Metadata:
    """Typed access to the metadata with errors that name the file and the key."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file = file
        self._architecture = architecture

    def get(self, name: str) -> Any:
        return self._file.value(f"{self._architecture}.{name}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one for each layer
        if isinstance(value, list) and all(isinstance(item, int) for item in value):
            raise UnsupportedError(f"{self._key(name)} differs from layer to layer; have: the same for all")
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ConfigMismatchError(f"{self._key(name)} is {shown(value)}; expected a whole number of at least 1")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value: Any = self.get(name)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ConfigMismatchError(f"{self._key(name)} is {shown(value)}; expected a number above 0")
        return float(value)

    def token_id(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._file.value(key)
        if value is not None and (type(value) is not int or value < 0):
            raise ConfigMismatchError(f"{self._file.path}: metadata '{key}' is {shown(value)}; expected a token id")
        return value

    def must_be(self, name: str, expected: Any) -> None:
        value = self.get(name)
        if value is not None and value != expected:
            raise UnsupportedError(f"{self._key(name)} is {shown(value)}; have: {expected!r}")

    def _key(self, name: str) -> str:
        return f"{self._file.path}: metadata '{self._architecture}.{name}'"


def _refuse_unsupported(metadata: _Metadata, file: GgufFile) -> None:
    kind, num_parts = file.value("general.type"), file.value("split.count")
    if kind not in (None, "model"):
        raise UnsupportedError(f"{file.path}: general.type is {shown(kind)}; have: 'model'")
    if num_parts not in (None, 0, 1):
        raise UnsupportedError(
            f"{file.path}: one of {shown(num_parts)} parts of a model; join them with llama.cpp's llama-gguf-split --merge"
        )
    for name, expected in _MUST_BE.items():
        metadata.must_be(name, expected)


def _head_dim(metadata: _Metadata, hidden_size: int, num_heads: int) -> int:
    """Elements of a head; llama.cpp knows those of keys, of values, and how many of them are rotated."""
    if metadata.get("attention.key_length") is None and hidden_size % num_heads:
        metadata.integer("attention.key_length")  # is missing, and cannot be worked out
    head_dim = metadata.integer("attention.key_length", hidden_size // num_heads)
    metadata.must_be("attention.value_length", head_dim)
    metadata.must_be("rope.dimension_count", head_dim)
    return head_dim


def _rope_scaling(metadata: _Metadata, file: GgufFile, config: ModelConfig) -> dict[str, Any] | None:
    """The ``rope_scaling`` of a ``config.json``."""
    kind = metadata.get("rope.scaling.type")
    key = "rope.scaling.factor" if metadata.get("rope.scaling.factor") is not None else "rope.scale_linear"
    if kind is None:  # llama.cpp then scales linearly, if there is a factor
        kind = "linear" if metadata.get(key) else "none"
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(f"{file.path}: rope.scaling.type is {shown(kind)}; have: none, linear, yarn")
    llama3 = _llama3_scaling(file, config)
    if kind == "none":
        return llama3
    if llama3 is not None:
        raise UnsupportedError(f"{file.path}: rotary scaling of type {kind!r} and '{ROPE_FREQS}'; have: one of the two")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": metadata.number(key)}
    if kind == "yarn":
        length = metadata.integer("rope.scaling.original_context_length", config.max_position_embeddings)
        scaling["original_max_position_embeddings"] = length
        for name in ("beta_fast", "beta_slow"):
            if metadata.get(f"rope.scaling.yarn_{name}") is not None:
                scaling[name] = metadata.number(f"rope.scaling.yarn_{name}")
    return scaling


def _llama3_scaling(file: GgufFile, config: ModelConfig) -> dict[str, Any] | None:
    """The scaling that has led to ``rope_freqs.weight``; ``None`` where that is absent or all ones."""
    tensor = file.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    where = f"{file.path}: tensor '{ROPE_FREQS}'"
    if tensor.dtype != "float32":
        raise TensorDtypeError(f"{where}: found {tensor.dtype}; expected float32")
    if tensor.shape != (config.head_dim // 2,):
        raise TensorShapeError(f"{where}: found {list(tensor.shape)}; expected {[config.head_dim // 2]}")
    found = file.array(ROPE_FREQS).astype(np.float64)
    if (found == 1).all():
        return None
    factor = float(found[-1])
    is_plausible = 1 < factor < math.inf and bool(((found >= 1) & (found <= factor)).all())
    for original in _llama3_originals(config, found) if is_plausible else []:
        scaling = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original, **_LLAMA3}
        if np.allclose(found, _llama3_divisors(config, scaling), rtol=_TOLERANCE, atol=0):
            return scaling
    raise UnsupportedError(
        f"{where}: these factors are not of Llama 3.1's kind ({_LLAMA3}); no other rotary scaling is stored so"
    )


def _llama3_originals(config: ModelConfig, divisors: Float64Array) -> list[int]:
    """Original context lengths that may have led to ``divisors``: Llama 3.1's, then what each between 1 and the last implies."""
    smooth = (1 / divisors - 1 / divisors[-1]) / (1 - 1 / divisors[-1])
    turns = _LLAMA3["low_freq_factor"] + smooth * (_LLAMA3["high_freq_factor"] - _LLAMA3["low_freq_factor"])
    lengths = (turns * _wavelengths(config))[(smooth > 0) & (smooth < 1)]
    plausible = lengths[(lengths >= 1) & (lengths < _MAX_LENGTH)]
    return [_LLAMA3_LENGTH, *(int(length) for length in np.rint(plausible))]


def _llama3_divisors(config: ModelConfig, scaling: Mapping[str, Any]) -> Float64Array:
    """What Llama 3.1 divides each frequency by, float64 ``[head_dim / 2]`` (``_compute_llama3_parameters`` of transformers)."""
    turns = scaling["original_max_position_embeddings"] / _wavelengths(config)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    divisors: Float64Array = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return divisors


def _wavelengths(config: ModelConfig) -> Float64Array:
    """Positions after which each rotary frequency comes round, float64 ``[head_dim / 2]``."""
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    return np.asarray(2 * np.pi * config.rope_theta**exponents)
