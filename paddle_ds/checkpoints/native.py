"""Writing the native checkpoint: compressed-tensors W8A8 by round-to-nearest, one tensor in memory at a time.

    out/  config.json                  the source's, with a quantization_config
          model[-0000n-of-0000m].safetensors, model.safetensors.index.json where there are several
          manifest.json                sha256, shape and type of every tensor; versions of what wrote it
          tokenizer and generation files, copied

Everything is written into ``.<out>.<pid>.partial`` beside ``out`` and renamed at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import paddle_ds
from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, Int8Weight, Progress
from paddle_ds.checkpoints.compressed import scheme_w8a8
from paddle_ds.checkpoints.dtypes import Array
from paddle_ds.checkpoints.hf_config import hf_config
from paddle_ds.checkpoints.layout import HEAD
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
from paddle_ds.errors import CheckpointError

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
    """Write ``source`` as a W8A8 checkpoint to ``out``, which must not exist yet (an empty directory is fine).

    Linears and an untied head become INT8, except those in ``source.ignored()``; weights that are INT8 already are
    copied bit by bit. Embedding, norms and biases stay as stored.

    Args:
        progress: called after each tensor with its name, and the source bytes done and in all.
        max_shard_bytes: a new file is begun when the current one would exceed this.

    Raises:
        CheckpointError: ``out`` exists, or the disk refuses.
        TensorNotFiniteError: a source tensor holds NaN or infinity.
    """
    quantized = {spec.name for spec in model_specs(source.config) if _is_quantized(source, spec)}
    with _renamed_when_complete(out) as partial:
        entries = _write_tensors(source, partial, quantized, progress, max_shard_bytes)
        _write_json(partial / "config.json", _config(source, quantized))
        manifest = {"version": 1, "tools": _tools(), "source": source.format, "tensors": entries}
        _write_json(partial / "manifest.json", manifest)
        for name in COMPANIONS:
            if (source.directory / name).is_file():
                shutil.copyfile(source.directory / name, partial / name)


def _is_quantized(source: Checkpoint, spec: TensorSpec) -> bool:
    return spec.role in (Role.LINEAR, Role.HEAD) and spec.name not in source.ignored()


def _write_tensors(
    source: Checkpoint, directory: Path, quantized: set[str], progress: Progress | None, max_shard_bytes: int
) -> dict[str, Any]:
    """Write the shards and their index; the manifest's entries by tensor name."""
    specs = {spec.name: spec for spec in model_specs(source.config)}
    groups = [_planned(source, spec, spec.name in quantized) for spec in specs.values()]
    shards = plan_shards(groups, max_shard_bytes)
    total_bytes = sum(stored.nbytes for stored in source.stored().values())
    done_bytes = 0
    entries: dict[str, Any] = {}
    for file_name, shard in zip(shard_names(len(shards)), shards, strict=True):
        with SafetensorsWriter(directory / file_name, shard) as writer:
            for spec in (specs[tensor.name] for tensor in shard if tensor.name in specs):
                for planned, values in _converted(source, spec, spec.name in quantized):
                    writer.write(planned.name, values)
                    entries[planned.name] = _manifest_entry(planned, values, file_name)
                source.release(spec)
                done_bytes += source.stored()[spec.name].nbytes
                if progress is not None:
                    progress(spec.name, done_bytes, total_bytes)
    write_index(directory, shards)
    return entries


def _planned(source: Checkpoint, spec: TensorSpec, quantize: bool) -> list[PlannedTensor]:
    if not quantize:
        return [PlannedTensor(spec.name, spec.shape, source.stored()[spec.name].dtype)]
    return [
        PlannedTensor(spec.name, spec.shape, "int8"),
        PlannedTensor(f"{spec.name}_scale", (spec.shape[0], 1), "float32"),
    ]


def _converted(source: Checkpoint, spec: TensorSpec, quantize: bool) -> list[tuple[PlannedTensor, Array]]:
    planned = _planned(source, spec, quantize)
    weight = source.read(spec)
    if isinstance(weight, DenseTensor) and not quantize:
        return [(planned[0], weight.values)]
    assert quantize, f"{spec.name} is INT8 and ignored: no reader does that"
    integers = weight if isinstance(weight, Int8Weight) else quantize_dense(weight)
    return [(planned[0], integers.values), (planned[1], integers.scales.reshape(-1, 1))]


def _manifest_entry(planned: PlannedTensor, values: Array, file_name: str) -> dict[str, Any]:
    digest = hashlib.sha256()
    for block in byte_blocks(values):
        digest.update(block)
    return {"sha256": digest.hexdigest(), "shape": list(planned.shape), "dtype": planned.dtype, "file": file_name}


def _config(source: Checkpoint, quantized: set[str]) -> dict[str, Any]:
    """The source's ``config.json`` with our quantisation; complete also where the source's leaves out defaults."""
    raw: dict[str, Any] = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    complete = hf_config(source.config)
    if "rope_parameters" in raw:  # transformers 5 keeps base and scaling there
        complete.pop("rope_theta", None)
        complete.pop("rope_scaling", None)
    config = complete | raw
    config.pop("paddlenlp_version", None)
    linears = [spec.name for spec in model_specs(source.config) if spec.role in (Role.LINEAR, Role.HEAD)]
    left_alone = [name for name in linears if name not in quantized]
    if source.config.tie_word_embeddings:
        left_alone.append(HEAD)
    config["quantization_config"] = scheme_w8a8(name.removesuffix(".weight") for name in left_alone)
    return config


def _tools() -> dict[str, str]:
    return {"paddle_ds": paddle_ds.__version__, "numpy": np.__version__, "python": platform.python_version()}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _renamed_when_complete(out: Path) -> Iterator[Path]:
    """A directory beside ``out`` that becomes ``out`` on success and is removed on failure."""
    out = out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: already there; expected a directory that does not exist or is empty")
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
