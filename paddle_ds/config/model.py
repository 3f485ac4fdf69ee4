"""``ModelConfig``: the shape of a decoder, read from a Hugging Face (or PaddleNLP) ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_ds.errors import (
    CheckpointNotFound,
    ConfigMismatchError,
    UnknownArchitectureError,
    UnsupportedError,
)

#: architecture name in ``config.json`` -> whether q, k and v carry a bias where the file does not say
ARCHITECTURES: Mapping[str, bool] = {"Qwen2ForCausalLM": True, "LlamaForCausalLM": False}

_MODEL_TYPES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
#: above every number a config.json means; keeps infinity and integers too long for a float out
_MAX_NUMBER = 1e30


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    ``linear`` uses ``factor`` alone. ``llama3`` (Llama 3.1) and ``yarn`` (arXiv 2309.00071) use the fields after it.
    """

    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Qwen2 or Llama decoder. Sizes count elements; ``vocab_size`` counts embedding rows, padding included."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stored_dtype: str = "float32"
    #: the checkpoint's own ``quantization_config``, as found; ``None`` where it has none
    quantization: Mapping[str, Any] | None = None

    @property
    def q_size(self) -> int:
        """Elements of all query heads of one token."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of all key (or value) heads of one token."""
        return self.num_kv_heads * self.head_dim

    @classmethod
    def from_dir(cls, path: Path) -> ModelConfig:
        """Read ``path/config.json``.

        Raises:
            CheckpointNotFound: there is no such file.
            ConfigMismatchError: it is not JSON, lacks a field, or contradicts itself.
            UnknownArchitectureError: it names an architecture we do not have.
            UnsupportedError: it asks for a feature we do not have (a sliding window, another activation or rotary scaling).
        """
        file = path / "config.json"
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise CheckpointNotFound(f"{file}: no such file; a checkpoint directory needs a config.json") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigMismatchError(f"{file}: cannot be read: {error}") from error
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigMismatchError(f"{file}: not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ConfigMismatchError(f"{file}: expected a JSON object, found {type(raw).__name__}")
        return cls.from_dict(raw, str(file))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Interpret the fields of a ``config.json``; ``where`` names the file in errors."""
        reader = _Fields(raw, where)
        architecture = _architecture(raw, where)
        hidden_size = reader.integer("hidden_size")
        num_heads = reader.integer("num_attention_heads")
        num_kv_heads = reader.integer("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise ConfigMismatchError(
                f"{where}: num_attention_heads={num_heads} is not a multiple of num_key_value_heads={num_kv_heads}"
            )
        if raw.get("head_dim") is None and hidden_size % num_heads:
            raise ConfigMismatchError(
                f"{where}: hidden_size={hidden_size} is not a multiple of num_attention_heads={num_heads} and head_dim is absent"
            )
        head_dim = reader.integer("head_dim", hidden_size // num_heads)
        if head_dim % 2:
            raise ConfigMismatchError(f"{where}: head_dim={head_dim} is odd; rotary embedding needs pairs")
        _refuse_unsupported(raw, where)
        max_positions = reader.integer("max_position_embeddings", 2048)
        rope, theta = _rope(raw, reader, where)
        attention_bias = reader.flag("attention_bias", ARCHITECTURES[architecture])
        return cls(
            architecture=architecture,
            hidden_size=hidden_size,
            intermediate_size=reader.integer("intermediate_size"),
            num_layers=reader.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=reader.integer("vocab_size"),
            max_position_embeddings=max_positions,
            rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=rope,
            tie_word_embeddings=reader.flag("tie_word_embeddings", False),
            qkv_bias=attention_bias,
            # Llama's attention_bias covers the output projection too; Qwen2 never has one there
            o_bias=attention_bias and architecture == "LlamaForCausalLM",
            mlp_bias=reader.flag("mlp_bias", False),
            bos_token_id=_first_id(raw.get("bos_token_id"), where, "bos_token_id"),
            eos_token_ids=_ids(raw.get("eos_token_id"), where, "eos_token_id"),
            stored_dtype=str(raw.get("torch_dtype") or raw.get("dtype") or "float32"),
            quantization=reader.mapping("quantization_config") or None,
        )


class _Fields:
    """Typed access to a JSON object with errors that name the file and the field."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self._raw = raw
        self._where = where

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._raw.get(name, default)
        if value is None:
            value = default
        if value is None:
            raise ConfigMismatchError(f"{self._where}: field '{name}' is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigMismatchError(f"{self._where}: field '{name}' is {value!r}; expected a whole number of at least 1")
        return value

    def number(self, name: str, default: float) -> float:
        value = self._raw.get(name, default)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _MAX_NUMBER:
            raise ConfigMismatchError(f"{self._where}: field '{name}' is {value!r}; expected a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigMismatchError(f"{self._where}: field '{name}' is {value!r}; expected true or false")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._raw.get(name)
        if value is not None and not isinstance(value, dict):
            raise ConfigMismatchError(f"{self._where}: field '{name}' is {value!r}; expected an object")
        return value or {}


def _architecture(raw: Mapping[str, Any], where: str) -> str:
    named = raw.get("architectures") or []
    candidates = list(map(str, named)) if isinstance(named, list) else [str(named)]
    model_type = str(raw.get("model_type"))
    candidates += [_MODEL_TYPES[model_type]] if model_type in _MODEL_TYPES and not candidates else []
    for name in candidates:
        if name in ARCHITECTURES:
            return name
    found = ", ".join(candidates) or f"model_type {raw.get('model_type')!r}"
    raise UnknownArchitectureError(f"{where}: architecture {found}; have: {', '.join(ARCHITECTURES)}")


def _refuse_unsupported(raw: Mapping[str, Any], where: str) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedError(f"{where}: hidden_act {activation!r}; have: silu")
    if raw.get("alibi"):
        raise UnsupportedError(f"{where}: alibi is true; only rotary positions are implemented")
    if raw.get("use_sliding_window"):
        raise UnsupportedError(f"{where}: use_sliding_window is true; only full attention is implemented")
    for holder in (raw, raw.get("rope_parameters")):
        if isinstance(holder, dict) and holder.get("partial_rotary_factor", 1) not in (None, 1):
            factor = holder["partial_rotary_factor"]
            raise UnsupportedError(f"{where}: partial_rotary_factor is {factor!r}; only whole heads are rotated")


def _rope(raw: Mapping[str, Any], reader: _Fields, where: str) -> tuple[RopeScaling, float]:
    """Rotary scaling and base. transformers 5 moved both, ``rope_theta`` too, into ``rope_parameters``."""
    nested = reader.mapping("rope_parameters")
    theta = _Fields(nested, f"{where}: rope_parameters").number("rope_theta", reader.number("rope_theta", 10000.0))
    scaling = reader.mapping("rope_scaling") or nested
    if raw.get("rope_scaling_type") and not scaling:  # PaddleNLP's spelling
        scaling = {"rope_type": raw["rope_scaling_type"], "factor": raw.get("rope_scaling_factor", 1.0)}
    if not scaling:
        return RopeScaling(), theta
    rope_type = str(scaling.get("rope_type", scaling.get("type", "default")))
    if rope_type not in _ROPE_TYPES:
        raise UnsupportedError(f"{where}: rope_scaling type {rope_type!r}; have: {', '.join(_ROPE_TYPES)}")
    if rope_type == "default":
        return RopeScaling(), theta
    known = {field.name: field.default for field in dataclasses.fields(RopeScaling) if field.name != "rope_type"}
    unknown = set(scaling) - set(known) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if unknown:
        raise UnsupportedError(f"{where}: rope_scaling has unknown keys {', '.join(sorted(unknown))}")
    if scaling.get("factor") is None:
        raise ConfigMismatchError(f"{where}: rope_scaling of type {rope_type!r} needs 'factor'")
    given = [key for key in known if scaling.get(key) is not None]
    values = {key: _rope_value(key, known[key], scaling, f"{where}: rope_scaling") for key in given}
    rope = RopeScaling(rope_type=rope_type, **values)
    if rope_type == "llama3" and not rope.low_freq_factor < rope.high_freq_factor:
        low, high = rope.low_freq_factor, rope.high_freq_factor
        raise ConfigMismatchError(f"{where}: rope_scaling has low_freq_factor={low}, not below high_freq_factor={high}")
    if rope_type == "yarn" and theta == 1:
        raise ConfigMismatchError(f"{where}: rope_theta is 1; yarn needs frequencies that differ")
    return rope, theta


def _rope_value(key: str, default: Any, scaling: Mapping[str, Any], where: str) -> Any:
    fields = _Fields(scaling, where)
    if isinstance(default, bool):
        return fields.flag(key, default)
    if key == "original_max_position_embeddings":
        return fields.integer(key)
    if key in ("mscale", "mscale_all_dim") and scaling[key] == 0:
        return 0.0  # DeepSeek's way to say: not used
    return fields.number(key, 1.0)


def _ids(value: Any, where: str, name: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
        raise ConfigMismatchError(f"{where}: field '{name}' is {value!r}; expected a token id or a list of them")
    return tuple(values)


def _first_id(value: Any, where: str, name: str) -> int | None:
    ids = _ids(value, where, name)
    return ids[0] if ids else None
