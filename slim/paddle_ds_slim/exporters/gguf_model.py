"""A GGUF file of a Llama or Qwen2, through the ``gguf`` package: metadata, tokenizer, tensors one at a time.

    embedding, head        as planned: F16, or Q8_0 for a head
    linears                F16 or Q8_0, [out, in]
    norms, biases          F32, as llama.cpp's kernels want them

llama.cpp rotates neighbouring elements in its ``llama`` architecture where Hugging Face rotates an element with the one half a
head further, so the rows of q and k are put into that order; in ``qwen2`` they stay.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, GroupedWeight, Progress, Weight
from paddle_ds.checkpoints.dtypes import Array, Float32Array
from paddle_ds.config.model import ModelConfig, RopeScaling
from paddle_ds.config.tensors import TensorSpec, model_specs
from paddle_ds.errors import UnsupportedError
from paddle_ds_slim.exporters.gguf_tokenizer import GgufTokenizer, read_tokenizer
from paddle_ds_slim.exporters.weights import BLOCK

if TYPE_CHECKING:
    import gguf

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
#: an F16 scale and 32 integers
_BLOCK_BYTES = 2 + BLOCK


def check_gguf(source: Checkpoint) -> None:
    """Refuse what llama.cpp, or its tokenizers, would read as something else.

    Raises:
        UnsupportedError: a part of the model or tokenizer, or the ``gguf`` package is absent.
    """
    _package()
    config = source.config
    where = source.directory / "config.json"
    if config.architecture == "Qwen2ForCausalLM":
        if config.head_dim * config.num_heads != config.hidden_size:
            raise UnsupportedError(
                f"{where}: head_dim {config.head_dim}; llama.cpp's qwen2 has hidden_size / num_attention_heads"
            )
        if config.rope_scaling.rope_type == "llama3":
            raise UnsupportedError(f"{where}: rotary scaling of type 'llama3'; llama.cpp's qwen2 has none, linear and yarn")
    if config.rope_scaling.rope_type == "yarn":
        _check_yarn(config.rope_scaling, str(where))
    read_tokenizer(source.directory, config.vocab_size)


def write_gguf(converted: Checkpoint, path: Path, file_type: str, progress: Progress | None) -> None:
    """Write one file. ``file_type`` is a name of gguf's ``LlamaFileType``, such as ``MOSTLY_Q8_0``."""
    package = _package()
    config, stored = converted.config, converted.stored()
    architecture = _ARCHITECTURES[config.architecture]
    writer = package.GGUFWriter(path, architecture)
    try:
        _add_metadata(writer, converted, file_type)
        _add_tokenizer(writer, config, read_tokenizer(converted.directory, config.vocab_size))
        names = package.get_tensor_name_map(getattr(package.MODEL_ARCH, architecture.upper()), config.num_layers)
        extra = _rope_factors(config)
        if extra is not None:
            writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
        for spec in model_specs(config):
            _add_tensor_info(writer, names.get_name(spec.name, (".weight", ".bias")), spec, stored[spec.name].dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if extra is not None:
            writer.write_tensor_data(extra)
        _write_tensors(writer, converted, progress)
        for file in writer.fout or ():
            file.flush()
            os.fsync(file.fileno())
    finally:
        writer.close()


def _package() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"writing GGUF needs the package {error.name}: pip install paddle-ds[gguf]") from error
    return gguf


def _add_metadata(writer: gguf.GGUFWriter, converted: Checkpoint, file_type: str) -> None:
    package, config = _package(), converted.config
    writer.add_type("model")
    writer.add_name(converted.directory.resolve().name)
    writer.add_file_type(package.LlamaFileType[file_type])
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.head_dim * config.num_heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    scaling = config.rope_scaling
    if scaling.rope_type in ("linear", "yarn"):
        writer.add_rope_scaling_type(package.RopeScalingType(scaling.rope_type))
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.rope_type == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings or config.max_position_embeddings)
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)


def _add_tokenizer(writer: gguf.GGUFWriter, config: ModelConfig, tokenizer: GgufTokenizer | None) -> None:
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        _add_special_ids(writer, config.bos_token_id, config.eos_token_ids)
        return
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    if tokenizer.adds_space_prefix is not None:
        writer.add_add_space_prefix(tokenizer.adds_space_prefix)
    _add_special_ids(writer, tokenizer.bos_id, tokenizer.eos_ids)
    if tokenizer.pad_id is not None:
        writer.add_pad_token_id(tokenizer.pad_id)
    if tokenizer.unknown_id is not None:
        writer.add_unk_token_id(tokenizer.unknown_id)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(tokenizer.adds_eos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _add_special_ids(writer: gguf.GGUFWriter, bos_id: int | None, eos_ids: Sequence[int]) -> None:
    """llama.cpp stops at each of three: eos (end of text), eot (of a turn), eom (of a message)."""
    if bos_id is not None:
        writer.add_bos_token_id(bos_id)
    for add, token_id in zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), eos_ids, strict=False):
        add(token_id)


def _add_tensor_info(writer: gguf.GGUFWriter, name: str | None, spec: TensorSpec, dtype: str) -> None:
    assert name is not None, f"{spec.name} has no name in GGUF"
    if dtype == "int8":
        shape = (spec.shape[0], spec.shape[1] // BLOCK * _BLOCK_BYTES)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), math.prod(shape), _package().GGMLQuantizationType.Q8_0)
        return
    numpy_dtype = np.dtype(dtype)
    writer.add_tensor_info(name, spec.shape, numpy_dtype, spec.num_elements * numpy_dtype.itemsize)


def _write_tensors(writer: gguf.GGUFWriter, converted: Checkpoint, progress: Progress | None) -> None:
    stored = converted.stored()
    total_bytes, done_bytes = sum(tensor.nbytes for tensor in stored.values()), 0
    for spec in model_specs(converted.config):
        writer.write_tensor_data(_bytes_of(converted.read(spec), spec, converted.config))
        converted.release(spec)
        done_bytes += stored[spec.name].nbytes
        if progress is not None:
            progress(spec.name, done_bytes, total_bytes)


def _bytes_of(weight: Weight, spec: TensorSpec, config: ModelConfig) -> Array:
    """A tensor as it lies in the file: float16 or float32, or uint8 ``[out, in / 32 * 34]``."""
    order = _row_order(spec, config)
    if isinstance(weight, DenseTensor):
        return np.ascontiguousarray(weight.values if order is None else weight.values[order])
    assert isinstance(weight, GroupedWeight)
    num_out, num_in = weight.shape
    blocks = np.empty((num_out, num_in // BLOCK, _BLOCK_BYTES), np.uint8)
    blocks[:, :, :2] = weight.scales.astype(np.float16)[:, :, None].view(np.uint8)
    blocks[:, :, 2:] = weight.values.view(np.uint8).reshape(num_out, -1, BLOCK)
    return (blocks if order is None else blocks[order]).reshape(num_out, -1)


def _row_order(spec: TensorSpec, config: ModelConfig) -> Array | None:
    """Which of our rows each row of the file is; ``None`` where the order stays."""
    if config.architecture != "LlamaForCausalLM":
        return None
    module = spec.name.rpartition(".")[0]
    if not module.endswith(("self_attn.q_proj", "self_attn.k_proj")):
        return None
    halves = np.arange(spec.shape[0]).reshape(-1, 2, config.head_dim // 2)
    return halves.swapaxes(1, 2).reshape(-1)


def _rope_factors(config: ModelConfig) -> Float32Array | None:
    """What llama.cpp divides each rotary frequency by, float32 ``[head_dim // 2]``, for Llama 3.1's scaling (see RotaryTable)."""
    scaling = config.rope_scaling
    if scaling.rope_type != "llama3":
        return None
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    wavelength = 2 * math.pi * np.float32(config.rope_theta) ** exponents
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32)


def _check_yarn(scaling: RopeScaling, where: str) -> None:
    """llama.cpp has one factor on attention, YaRN's own, and always whole dimensions."""
    usual = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    has_mscale = bool(scaling.mscale and scaling.mscale_all_dim)
    if (scaling.attention_factor is not None and not math.isclose(scaling.attention_factor, usual, rel_tol=1e-6)) or has_mscale:
        raise UnsupportedError(f"{where}: yarn with a factor on attention of its own; have for GGUF: 0.1 ln(factor) + 1")
    if not scaling.truncate:
        raise UnsupportedError(f"{where}: yarn with truncate false; llama.cpp truncates")
