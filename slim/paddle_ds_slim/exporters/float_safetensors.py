"""``float``: Hugging Face safetensors in one floating-point type, what other tools start from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, Progress
from paddle_ds.checkpoints.hf_config import hf_config
from paddle_ds.checkpoints.layout import EMBEDDING
from paddle_ds.checkpoints.native import MAX_SHARD_BYTES
from paddle_ds.checkpoints.safetensors_writer import (
    PlannedTensor,
    SafetensorsWriter,
    plan_shards,
    shard_names,
    write_index,
)
from paddle_ds.config.tensors import TensorSpec, model_specs
from paddle_ds_slim.exporters.target import Found, Planned, Target

#: what only quantised checkpoints or other libraries' files have
_FOREIGN_FIELDS = ("quantization_config", "paddlenlp_version", "dtype")


class FloatTarget(Target):
    """Every tensor in ``dtype``, integers dequantised. Without one it is the type the embedding is stored in."""

    name = "float"

    def __init__(self, dtype: str | None = None, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self._dtype = dtype
        self._max_shard_bytes = max_shard_bytes

    def check(self, source: Checkpoint) -> None:
        self._dtype = self._dtype or source.stored()[EMBEDDING].dtype

    def plan(self, spec: TensorSpec, found: Found) -> Planned:
        assert self._dtype is not None, "check() comes first"
        return Planned(self._dtype)

    def write(self, converted: Checkpoint, directory: Path, progress: Progress | None) -> None:
        specs = {spec.name: spec for spec in model_specs(converted.config)}
        stored = converted.stored()
        shards = plan_shards(
            ([PlannedTensor(name, spec.shape, stored[name].dtype)] for name, spec in specs.items()), self._max_shard_bytes
        )
        total_bytes, done_bytes = sum(tensor.nbytes for tensor in stored.values()), 0
        for file_name, shard in zip(shard_names(len(shards)), shards, strict=True):
            with SafetensorsWriter(directory / file_name, shard) as writer:
                for tensor in shard:
                    weight = converted.read(specs[tensor.name])
                    assert isinstance(weight, DenseTensor)
                    writer.write(tensor.name, weight.values)
                    converted.release(specs[tensor.name])
                    done_bytes += stored[tensor.name].nbytes
                    if progress is not None:
                        progress(tensor.name, done_bytes, total_bytes)
        write_index(directory, shards)
        self._write_config(converted, directory / "config.json")

    def remarks(self, source: Checkpoint, planned: dict[str, Planned]) -> Iterator[str]:
        yield f"All tensors are {self._dtype}."

    def _write_config(self, converted: Checkpoint, path: Path) -> None:
        raw = {key: value for key, value in converted.raw_config().items() if key not in _FOREIGN_FIELDS}
        complete = hf_config(converted.config)
        if "rope_parameters" in raw:  # transformers 5 keeps base and scaling there
            complete.pop("rope_theta", None)
            complete.pop("rope_scaling", None)
        config = complete | raw | {"torch_dtype": self._dtype}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
