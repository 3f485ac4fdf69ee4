"""PaddleNLP's decoders in float32 on the CPU, with our checkpoints' weights: what calibration and training run.

PaddleNLP reads a ``config.json`` its own way: it drops rotary scalings that it does not know without a word, and cannot say a
head size other than ``hidden_size / heads`` or most biases. Here :class:`ModelConfig` decides. PaddleNLP gives the forward pass;
linear layers of another shape or bias than the config implies are replaced, and cosines and sines come from the engine's own
:class:`RotaryTable`. ``from_pretrained`` is not used: it writes files into the model's directory.

Outside, names and orientation are canonical (``model.layers.0.self_attn.q_proj.weight``, ``[out, in]``). Inside, a linear layer's
weight is ``[in, out]`` and an untied head's ``[hidden, vocab]``; a tied head is the embedding itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
from paddle import nn

from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.checkpoints.dtypes import Float32Array
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import Role, TensorSpec, layer_specs, model_specs
from paddle_ds.errors import QuantizationError, UnsupportedError
from paddle_ds.layers import RotaryTable

logger = logging.getLogger(__name__)

#: linear layers of a block by what follows ``model.layers.N.``, in the order of a forward pass; each line reads one input
LINEAR_GROUPS: tuple[tuple[str, ...], ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
LINEARS = tuple(name for group in LINEAR_GROUPS for name in group)

_BLOCK_PREFIX = re.compile(r"model\.layers\.(\d+)\.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What PaddleNLP and PaddleSlim print and warn of goes to the debug log."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        yield
    if printed.getvalue().strip():
        logger.debug("paddle.said %s", printed.getvalue().strip())


class Positions(nn.Layer):  # type: ignore[misc]  # Paddle's classes are Any to mypy
    """Stands in for PaddleNLP's rotary embeddings: called, it gives cosines and sines, each ``[1, seq_len, 1, head_dim]``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._rotary = RotaryTable(config)
        self._num_positions = 0
        self._tables: tuple[paddle.Tensor, ...] = ()

    def forward(self, x: paddle.Tensor, seq_len: int) -> tuple[paddle.Tensor, ...]:
        del x  # PaddleNLP passes it for its type; everything is float32 here
        if seq_len > self._num_positions:
            halves = self._rotary.cos_sin(np.arange(seq_len))
            self._tables = tuple(paddle.to_tensor(np.tile(half, 2)[None, :, None, :]) for half in halves)
            self._num_positions = seq_len
        return tuple(table[:, :seq_len] for table in self._tables)


@dataclasses.dataclass(frozen=True)
class _Classes:
    """What PaddleNLP has for one of our architectures."""

    config: Any
    block: Any
    model: Any
    #: its context manager that leaves the weights of a new model as they were allocated
    no_init_weights: Any


@functools.cache
def _paddlenlp(architecture: str) -> _Classes:
    """The import takes some ten seconds: PaddleNLP loads all of itself."""
    try:
        with quiet():
            from paddlenlp.transformers import model_utils
            from paddlenlp.transformers.llama import configuration as llama_configuration
            from paddlenlp.transformers.llama import fusion_ops
            from paddlenlp.transformers.llama import modeling as llama
            from paddlenlp.transformers.qwen2 import configuration as qwen2_configuration
            from paddlenlp.transformers.qwen2 import modeling as qwen2
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"PaddleNLP cannot be imported: {error.name} is missing; pip install paddle-ds[slim] brings what it needs"
        ) from error
    if hasattr(nn.functional, "swiglu"):  # Paddle 3.3 warns at every call of the function by its old name, which PaddleNLP uses
        llama.swiglu = fusion_ops.swiglu = nn.functional.swiglu
    no_init = model_utils.no_init_weights
    if architecture == "LlamaForCausalLM":
        return _Classes(llama_configuration.LlamaConfig, llama.LlamaDecoderLayer, llama.LlamaForCausalLM, no_init)
    if architecture == "Qwen2ForCausalLM":
        return _Classes(qwen2_configuration.Qwen2Config, qwen2.Qwen2DecoderLayer, qwen2.Qwen2ForCausalLM, no_init)
    raise UnsupportedError(f"architecture {architecture!r} has no PaddleNLP model here; have: LlamaForCausalLM, Qwen2ForCausalLM")


@contextlib.contextmanager
def _construction(architecture: str) -> Iterator[_Classes]:
    """PaddleNLP's classes, where a layer is made without drawing random numbers and with names that start at ``linear_0``.

    PaddleSlim finds layers by these names and tells a norm of attention from one of the MLP by whether its number is even.
    """
    classes = _paddlenlp(architecture)
    zeros, dtype = nn.initializer.Constant(0.0), paddle.get_default_dtype()
    paddle.set_default_dtype("float32")
    nn.initializer.set_global_initializer(zeros, zeros)
    try:
        with paddle.utils.unique_name.guard(), classes.no_init_weights(), quiet():
            yield classes
    finally:
        nn.initializer.set_global_initializer(None, None)
        paddle.set_default_dtype(dtype)


def _native_config(config: ModelConfig, classes: _Classes) -> Any:
    return classes.config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_word_embeddings,
        # its tables of this length, one a layer, are replaced: 128 MB each for a context of 131072
        max_position_embeddings=1,
        use_cache=False,
    )


def build_model(checkpoint: Checkpoint) -> Any:
    """PaddleNLP's ``LlamaForCausalLM`` or ``Qwen2ForCausalLM`` with the checkpoint's weights, float32, in evaluation mode.

    INT8 weights are dequantised. ``model(ids)`` takes int64 ``[B, T]`` and gives a tuple whose first item is logits float32
    ``[B, T, vocab]``; padding, if any, goes to the right and needs no mask, since attention is causal.

    Raises:
        UnsupportedError: PaddleNLP has no such architecture.
        TensorNotFiniteError: a tensor holds NaN or infinity.
    """
    config = checkpoint.config
    with _construction(config.architecture) as classes:
        model = classes.model(_native_config(config, classes))
        positions = Positions(config)
        for index, block in enumerate(blocks_of(model)):
            _adapt(block, config, index, positions)
    model.canonical_config = config
    for spec in model_specs(config):
        _store(_owner(model, spec.name), spec, checkpoint.read(spec).to_float32())
        checkpoint.release(spec)
    model.eval()
    return model


def build_block(config: ModelConfig, index: int) -> Any:
    """Decoder layer ``index`` alone (``LlamaDecoderLayer`` or ``Qwen2DecoderLayer``), in evaluation mode, all zeros.

    :func:`load_block` fills it, also with another layer's tensors, so one block serves a whole model.
    """
    with _construction(config.architecture) as classes:
        block = classes.block(_native_config(config, classes))
        _adapt(block, config, index, Positions(config))
    block.eval()
    return block


def _adapt(block: Any, config: ModelConfig, index: int, positions: Positions) -> None:
    """Make a PaddleNLP decoder layer what ``config`` says. Call it where the layer was constructed, for the names' sake."""
    block.canonical_config = config
    block.layer_index = index
    block.self_attn.head_dim = config.head_dim
    block.self_attn.rotary_emb = positions
    specs = {spec.name.removeprefix(f"model.layers.{index}."): spec for spec in layer_specs(config, index)}
    for suffix in LINEARS:
        path, _, name = suffix.rpartition(".")
        parent = _descend(block, path)
        num_out, num_in = specs[f"{suffix}.weight"].shape
        if getattr(parent, name).weight.shape != [num_in, num_out]:  # head_dim * heads is not hidden_size
            setattr(parent, name, nn.Linear(num_in, num_out, bias_attr=False))
        _set_bias(getattr(parent, name), np.zeros(num_out, np.float32) if f"{suffix}.bias" in specs else None)


def load_block(block: Any, tensors: Mapping[str, Float32Array]) -> None:
    """Fill a block with the tensors of one layer, whose number it takes on.

    Args:
        tensors: all tensors of ``layer_specs(config, index)`` by canonical name, float32, linear weights ``[out, in]``. A bias
            beyond them is taken, so that a shift folded into biases can be run.

    Raises:
        ValueError: a tensor is absent, unknown, or of another layer or shape.
    """
    prefixes = {match.group() for name in tensors if (match := _BLOCK_PREFIX.match(name))}
    if len(prefixes) != 1:
        raise ValueError(f"tensors of {len(prefixes)} layers ({', '.join(sorted(prefixes))}); expected those of one")
    prefix = prefixes.pop()
    index = int(prefix.split(".")[2])
    specs = {spec.name: spec for spec in layer_specs(block.canonical_config, index)}
    biases = {f"{prefix}{name}.bias" for name in LINEARS}
    absent, unknown = specs.keys() - tensors.keys(), tensors.keys() - specs.keys() - biases
    if absent or unknown:
        raise ValueError(f"layer {index}: absent {sorted(absent)}, unknown {sorted(unknown)}")
    for name in biases:
        linear = _descend(block, name.removeprefix(prefix).removesuffix(".bias"))
        _set_bias(linear, tensors.get(name))
    for name, spec in specs.items():
        if spec.role is not Role.BIAS:
            _store(_descend(block, name.removeprefix(prefix).removesuffix(".weight")), spec, tensors[name])
    block.layer_index = index


def run_block(block: Any, hidden: Float32Array) -> Float32Array:
    """One decoder layer over whole sequences from position 0, causal: float32 ``[B, T, H]`` -> ``[B, T, H]``. No gradients."""
    batch, num_tokens, _ = hidden.shape
    mask = np.triu(np.full((num_tokens, num_tokens), np.finfo(np.float32).min, np.float32), 1)
    mask = np.broadcast_to(mask, (batch, 1, num_tokens, num_tokens))
    positions = np.broadcast_to(np.arange(num_tokens), (batch, num_tokens))
    with paddle.no_grad():
        out = block(paddle.to_tensor(hidden), paddle.to_tensor(positions), paddle.to_tensor(mask))
    result: Float32Array = out.numpy()
    return result


def run(layer: Any, batch: npt.NDArray[Any]) -> None:
    """Send a batch through a model (token ids int64 ``[T]`` or ``[B, T]``) or a block (float32 ``[B, T, H]``), for its hooks."""
    if hasattr(layer, "layer_index"):
        run_block(layer, batch)
        return
    with paddle.no_grad():
        layer(paddle.to_tensor(np.atleast_2d(batch)))


def embed(model: Any, ids: npt.NDArray[np.int64]) -> Float32Array:
    """What the first block of a model reads: int64 ``[B, T]`` -> float32 ``[B, T, H]``."""
    with paddle.no_grad():
        hidden: Float32Array = model.get_decoder().embed_tokens(paddle.to_tensor(ids)).numpy()
    return hidden


def blocks_of(layer: Any) -> list[Any]:
    """The decoder layers of a model; a block is its own only one."""
    return [layer] if hasattr(layer, "layer_index") else list(layer.get_decoder().layers)


def block_linears(block: Any) -> dict[str, Any]:
    """The seven ``paddle.nn.Linear`` of a decoder layer by canonical suffix such as ``self_attn.q_proj``, in forward order."""
    return {suffix: _descend(block, suffix) for suffix in LINEARS}


def state_of(layer: Any) -> dict[str, Float32Array]:
    """Tensors of a model or a block by canonical name, copied, in the order of a forward pass.

    A linear layer that got a bias which the config does not imply (:func:`load_block`, PaddleSlim's ``Shift``) yields it too.

    Raises:
        QuantizationError: a norm or linear layer was wrapped into something that a plain weight cannot say.
    """
    config: ModelConfig = layer.canonical_config
    is_block = hasattr(layer, "layer_index")
    specs = layer_specs(config, layer.layer_index) if is_block else model_specs(config)
    tensors: dict[str, Float32Array] = {}
    for spec in specs:
        if spec.role is Role.BIAS:
            continue
        owner = _owner(layer, spec.name)
        _check_plain(owner, spec)
        values = owner.weight.numpy()
        tensors[spec.name] = np.ascontiguousarray(values.T) if spec.role in (Role.LINEAR, Role.HEAD) else values.copy()
        if getattr(owner, "bias", None) is not None:
            tensors[spec.name.removesuffix("weight") + "bias"] = owner.bias.numpy().copy()
    return tensors


def _check_plain(owner: Any, spec: TensorSpec) -> None:
    """PaddleSlim's helper layers carry shifts and scales besides ``weight``; they all keep the wrapped layer as ``layer``."""
    if hasattr(owner, "layer"):
        raise QuantizationError(
            f"{spec.name.removesuffix('.weight')} was wrapped into {type(owner).__name__}, whose shift or scale no checkpoint "
            "can hold; leave the step out that does so, or fold it into the neighbouring weights"
        )


def _owner(layer: Any, name: str) -> Any:
    """The sublayer of a model or a block that holds the tensor of this canonical name."""
    path = name.removesuffix(".weight").removesuffix(".bias")
    if hasattr(layer, "layer_index"):
        return _descend(layer, _BLOCK_PREFIX.sub("", path))
    return layer.lm_head if path == "lm_head" else _descend(layer.get_decoder(), path.removeprefix("model."))


def _descend(layer: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), layer)


def _store(owner: Any, spec: TensorSpec, values: Float32Array) -> None:
    if values.shape != spec.shape:
        raise ValueError(f"{spec.name} has shape {values.shape}; expected {spec.shape}")
    if spec.role is Role.BIAS:
        owner.bias.set_value(values)
    else:
        owner.weight.set_value(np.ascontiguousarray(values.T) if spec.role in (Role.LINEAR, Role.HEAD) else values)


def _set_bias(linear: Any, values: Float32Array | None) -> None:
    if values is None:
        linear.bias = None
        return
    if linear.bias is None:
        linear.bias = linear.create_parameter([linear.weight.shape[1]], is_bias=True)
    linear.bias.set_value(values)
