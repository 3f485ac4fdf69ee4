"""Writing the native checkpoint, compressed-tensors, one tensor in memory at a time.

    out/  config.json                  the source's, with a quantization_config
          model[-0000n-of-0000m].safetensors, model.safetensors.index.json where there are several
          manifest.json                sha256, shape and type of every tensor; versions of what wrote it
          tokenizer and generation files, copied

Everything is written beside ``out`` and renamed at the end.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import paddle_ds
from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, GroupedWeight, Int8Weight, Progress, Weight
from paddle_ds.checkpoints.compressed import pack_words, words
from paddle_ds.checkpoints.compressed_config import compressed_config, group_for
from paddle_ds.checkpoints.compressed_scheme import Group
from paddle_ds.checkpoints.dtypes import Array
from paddle_ds.checkpoints.hf_config import hf_config
from paddle_ds.checkpoints.layout import HEAD
from paddle_ds.checkpoints.new_directory import new_directory
from paddle_ds.checkpoints.rounding import quantize_dense
from paddle_ds.checkpoints.safetensors_writer import (
    PlannedTensor,
    SafetensorsWriter,
    byte_blocks,
    plan_shards,
    shard_names,
    write_index,
)
from paddle_ds.config.tensors import Role, TensorSpec, model_specs

#: files that travel with the weights, where the source has them
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)

MAX_SHARD_BYTES = 4 << 30


def write_native(
    source: Checkpoint, out: Path, progress: Progress | None = None, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write ``source`` as a compressed-tensors checkpoint to ``out``, which must not exist yet (an empty directory is fine).

    Weights that are quantised already keep their integers, scales and schemes. Linears and an untied head in floating point
    become W8A8 by round-to-nearest, except those in ``source.ignored()``. Embedding, norms and biases stay as stored.

    Args:
        progress: called after each tensor with its name, and the source bytes done and in all.
        max_shard_bytes: a new file is begun when the current one would exceed this.

    Raises:
        CheckpointError: ``out`` exists, or the disk refuses.
        TensorNotFiniteError: a source tensor holds NaN or infinity.
    """
    with new_directory(out) as partial:
        write_native_into(source, partial, progress, max_shard_bytes=max_shard_bytes)


def write_native_into(
    source: Checkpoint, directory: Path, progress: Progress | None = None, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """:func:`write_native` into a directory that is there and that the caller answers for."""
    groups = {
        spec.name.removesuffix(".weight"): group_for(source, source.stored()[spec.name])
        for spec in model_specs(source.config)
        if spec.role in (Role.LINEAR, Role.HEAD) and spec.name not in source.ignored()
    }
    entries = _write_tensors(source, directory, groups, progress, max_shard_bytes)
    _write_json(directory / "config.json", _config(source, groups))
    manifest = {"version": 1, "tools": _tools(), "source": source.format, "tensors": entries}
    _write_json(directory / "manifest.json", manifest)
    for name in COMPANIONS:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, directory / name)


def _write_tensors(
    source: Checkpoint, directory: Path, groups: Mapping[str, Group], progress: Progress | None, max_shard_bytes: int
) -> dict[str, Any]:
    """Write the shards and their index; the manifest's entries by tensor name."""
    specs = list(model_specs(source.config))
    planned = [_planned(source, spec, groups.get(spec.name.removesuffix(".weight"))) for spec in specs]
    planned.append([PlannedTensor(name, values.shape, "float32") for name, values in _kv_scales(source).items()])
    shards = plan_shards(planned, max_shard_bytes)
    owner = {tensor.name: spec for spec, tensors in zip(specs, planned, strict=False) for tensor in tensors}
    total_bytes = sum(stored.nbytes for stored in source.stored().values())
    done_bytes = 0
    entries: dict[str, Any] = {}
    for file_name, shard in zip(shard_names(len(shards)), shards, strict=True):
        with SafetensorsWriter(directory / file_name, shard) as writer:
            by_name = {tensor.name: tensor for tensor in shard}
            for spec in dict.fromkeys(owner[name] for name in by_name if name in owner):
                for name, values in _converted(source, spec, groups.get(spec.name.removesuffix(".weight"))).items():
                    writer.write(name, values)
                    entries[name] = _manifest_entry(by_name[name], values, file_name)
                source.release(spec)
                done_bytes += source.stored()[spec.name].nbytes
                if progress is not None:
                    progress(spec.name, done_bytes, total_bytes)
            for name, values in _kv_scales(source).items():
                if name in by_name:
                    writer.write(name, values)
                    entries[name] = _manifest_entry(by_name[name], values, file_name)
    write_index(directory, shards)
    return entries


def _planned(source: Checkpoint, spec: TensorSpec, group: Group | None) -> list[PlannedTensor]:
    if group is None:
        return [PlannedTensor(spec.name, spec.shape, source.stored()[spec.name].dtype)]
    num_out, num_in = spec.shape
    scale = PlannedTensor(f"{spec.name}_scale", (num_out, 1), "float32")
    if not group.packed:
        return [PlannedTensor(spec.name, spec.shape, "int8"), scale]
    groups = source.stored()[spec.name].groups
    num_groups = groups.count if groups is not None else 1
    tensors = [
        PlannedTensor(f"{spec.name}_packed", (num_out, words(num_in, group.bits)), "int32"),
        PlannedTensor(f"{spec.name}_scale", (num_out, num_groups), "float32"),
        PlannedTensor(f"{spec.name}_shape", (2,), "int64"),
    ]
    if not group.symmetric:
        tensors.append(PlannedTensor(f"{spec.name}_zero_point", (words(num_out, group.bits), num_groups), "int32"))
    if group.has_group_index:
        tensors.append(PlannedTensor(f"{spec.name}_g_idx", (num_in,), "int32"))
    return tensors


def _converted(source: Checkpoint, spec: TensorSpec, group: Group | None) -> dict[str, Array]:
    """The tensors of one weight by name."""
    weight = source.read(spec)
    if group is None:
        assert isinstance(weight, DenseTensor), f"{spec.name} is quantised and ignored: no reader does that"
        return {spec.name: weight.values}
    if isinstance(weight, DenseTensor):
        weight = quantize_dense(weight)
    if not group.packed:
        assert isinstance(weight, Int8Weight)
        return {spec.name: weight.values, f"{spec.name}_scale": weight.scales.reshape(-1, 1)}
    return {f"{spec.name}_{part}": values for part, values in _packed(weight, group).items()}


def _packed(weight: Weight, group: Group) -> dict[str, Array]:
    assert isinstance(weight, (Int8Weight, GroupedWeight))
    scales = weight.scales.reshape(-1, 1) if isinstance(weight, Int8Weight) else weight.scales
    parts: dict[str, Array] = {
        "packed": pack_words(weight.values, group.bits),
        "scale": np.ascontiguousarray(scales, np.float32),
        "shape": np.array(weight.shape, np.int64),
    }
    if isinstance(weight, GroupedWeight) and weight.zero_points is not None:
        parts["zero_point"] = np.ascontiguousarray(pack_words(weight.zero_points.T, group.bits).T)
    if isinstance(weight, GroupedWeight) and weight.group_index is not None:
        parts["g_idx"] = weight.group_index
    return parts


def _kv_scales(source: Checkpoint) -> dict[str, Array]:
    """Fixed scales of an INT8 cache by the names they are stored under, float32 ``[kv heads, 1, 1]``."""
    kv_cache = source.kv_cache()
    scales: dict[str, Array] = {}
    for index, layer in enumerate((kv_cache and kv_cache.scales) or ()):
        scales[f"model.layers.{index}.self_attn.k_scale"] = layer.key.reshape(-1, 1, 1)
        scales[f"model.layers.{index}.self_attn.v_scale"] = layer.value.reshape(-1, 1, 1)
    return scales


def _manifest_entry(planned: PlannedTensor, values: Array, file_name: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    for block in byte_blocks(values):
        digest.update(block)
    return {"sha256": digest.hexdigest(), "shape": list(planned.shape), "dtype": planned.dtype, "file": file_name}


def _config(source: Checkpoint, groups: Mapping[str, Group]) -> dict[str, Any]:
    """The source's ``config.json`` with our quantisation; complete also where the source's leaves out defaults."""
    raw = source.raw_config()
    complete = hf_config(source.config)
    if "rope_parameters" in raw:  # transformers 5 keeps base and scaling there
        complete.pop("rope_theta", None)
        complete.pop("rope_scaling", None)
    config = complete | raw
    config.pop("paddlenlp_version", None)
    config.pop("quantization_config", None)
    linears = [spec.name.removesuffix(".weight") for spec in model_specs(source.config) if spec.role in (Role.LINEAR, Role.HEAD)]
    left_alone = [name for name in linears if name not in groups]
    if source.config.tie_word_embeddings:
        left_alone.append(HEAD.removesuffix(".weight"))
    if groups or source.kv_cache() is not None:
        config["quantization_config"] = compressed_config(groups, left_alone, source.kv_cache())
    return config


def _tools() -> dict[str, str]:
    return {"paddle_ds": paddle_ds.__version__, "numpy": np.__version__, "python": platform.python_version()}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
