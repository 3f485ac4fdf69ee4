"""The quantised model before it is written: a checkpoint over the source and the work directory.

The gate may move layers to a higher precision here (``overrides``), as often as it likes, before anything is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_ds.checkpoints.base import (
    Checkpoint,
    DenseTensor,
    Groups,
    KvScales,
    KvScheme,
    StoredTensor,
    Weight,
)
from paddle_ds.checkpoints.dtypes import NUMPY_DTYPES, Array, Float32Array, narrow
from paddle_ds.checkpoints.hf_config import hf_config
from paddle_ds.checkpoints.layout import HEAD
from paddle_ds.checkpoints.rounding import quantize_dense
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import Role, TensorSpec, model_specs
from paddle_ds_slim.block_state import PAIRS, BlockState, Fold, widened
from paddle_ds_slim.recipe import Pair
from paddle_ds_slim.rounding import Format, assembled, rounded
from paddle_ds_slim.work_directory import WorkDirectory


@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """What is known of one finished layer besides its numbers."""

    #: linear -> scheme -> relative output error on calibration inputs
    output_errors: Mapping[str, Mapping[str, float]]
    choices: Mapping[str, Mapping[str, float]]
    #: largest relative change of the layer's output by folding; ``None`` where nothing was folded
    fold_error: float | None


def save_layer(work: WorkDirectory, state: BlockState, record: LayerRecord, kv: KvScales | None) -> None:
    """Keep a finished layer."""
    tensors: dict[str, Array] = {}
    for linear, weight in state.rounded.items():
        if not isinstance(weight, DenseTensor):
            tensors[f"{linear}.values"] = weight.values
            tensors[f"{linear}.scales"] = weight.scales.reshape(len(weight.values), -1)
    for name, values in state.tensors.items():
        if not name.endswith("proj.weight"):
            tensors[f"tensor.{name}"] = values
    for number, fold in enumerate(state.folds):
        tensors[f"fold.{number:03d}.{fold.pair}.scale"] = fold.scale
        if fold.shift is not None:
            tensors[f"fold.{number:03d}.{fold.pair}.shift"] = fold.shift
    if kv is not None:
        tensors |= {"kv.key": kv.key, "kv.value": kv.value}
    work.save(f"layer-{state.index:05d}", tensors, dataclasses.asdict(record))


class QuantizedCheckpoint(Checkpoint):
    """See the module's text.

    Args:
        config: the source's, or with the biases that a shift needs.
        formats: linear layer (or ``lm_head``) -> how it is held.
    """

    format = "quantized"

    def __init__(
        self, source: Checkpoint, work: WorkDirectory, config: ModelConfig, formats: Mapping[str, Format], kv_dynamic: bool | None
    ) -> None:
        self._source = source
        self._work = work
        self.config = dataclasses.replace(config, quantization=None)
        self.directory: Path = source.directory
        self._formats = formats
        self._kv_dynamic = kv_dynamic
        self.overrides: dict[str, Scheme] = {}
        self._measured: dict[str, Mapping[str, float]] | None = None
        self._float_dtype: str | None = None

    def scheme_of(self, linear: str) -> Scheme:
        """The scheme of a linear layer, as the recipe has it or as it was moved."""
        return self.overrides.get(linear, self._formats[linear].scheme)

    def stored(self) -> Mapping[str, StoredTensor]:
        return {spec.name: self._stored(spec) for spec in model_specs(self.config)}

    def schemes(self) -> Mapping[str, Scheme]:
        names = [spec.name.removesuffix(".weight") for spec in model_specs(self.config) if spec.role in (Role.LINEAR, Role.HEAD)]
        return {name: self.scheme_of(name) for name in names if self.scheme_of(name) != "dense"}

    def ignored(self) -> frozenset[str]:
        dense = {f"{name}.weight" for name in self._formats if self.scheme_of(name) == "dense"}
        return frozenset(dense | ({HEAD} if self.config.tie_word_embeddings else set()))

    def kv_cache(self) -> KvScheme | None:
        if self._kv_dynamic is None:
            return None
        if self._kv_dynamic:
            return KvScheme(None)
        layers = [self._work.load_some(_layer_file(index), ["kv.key", "kv.value"]) for index in range(self.config.num_layers)]
        return KvScheme(tuple(KvScales(layer["kv.key"], layer["kv.value"]) for layer in layers))

    def raw_config(self) -> dict[str, Any]:
        raw = self._source.raw_config()
        if self.config.architecture != self._source.config.architecture:  # a Qwen2 written as a Llama with biases
            kept = {key: value for key, value in raw.items() if key not in _QWEN2_ONLY}
            return kept | hf_config(self.config)
        return raw | hf_config(self.config) if self.config.o_bias != self._source.config.o_bias else raw

    def read(self, spec: TensorSpec) -> Weight:
        if not spec.name.startswith("model.layers."):
            weight = self._source.read(spec)
            return self._rounded_head(spec, weight) if spec.role is Role.HEAD else weight
        index, name = _split(spec.name)
        if spec.role is not Role.LINEAR:
            return DenseTensor(self._work.load_some(_layer_file(index), [f"tensor.{name}"])[f"tensor.{name}"], "float32")
        linear = spec.name.removesuffix(".weight")
        if linear in self.overrides or self._formats[linear].scheme == "dense":
            return self._from_source(spec)
        short = name.removesuffix(".weight")
        parts = self._work.load_some(_layer_file(index), [f"{short}.values", f"{short}.scales"])
        return assembled(parts[f"{short}.values"], parts[f"{short}.scales"], self._formats[linear])

    def folded(self, spec: TensorSpec) -> Float32Array:
        """A linear weight of a layer in float32, with everything folded into it."""
        index, name = _split(spec.name)
        weight = self._source.read(spec).to_float32()
        self._source.release(spec)
        return fold_weight(self.config, name.removesuffix(".weight"), weight, self._folds(index))

    def output_error(self, linear: str) -> float | None:
        """Relative output error of a linear layer as it is held now; ``None`` where nothing was measured."""
        return self.output_errors().get(linear)

    def output_errors(self) -> dict[str, float]:
        """Linear layer -> relative output error on calibration inputs as it is held now; 0 in floating point."""
        errors: dict[str, float] = {}
        for linear, by_scheme in self._errors().items():
            scheme = self.scheme_of(linear)
            if scheme == "dense":
                errors[linear] = 0.0
            elif scheme in by_scheme:
                errors[linear] = by_scheme[scheme]
        return errors

    def group_sizes(self) -> dict[str, int | None]:
        """Linear layer of 4 bits -> inputs that share a scale; ``None``: all of them."""
        return {name: form.group_size for name, form in self._formats.items() if self.scheme_of(name) == "w4a16"}

    def float_view(self) -> QuantizedCheckpoint:
        """The same with every linear layer in float32, with what was folded into it: for training."""
        view = QuantizedCheckpoint(self._source, self._work, self.config, self._formats, None)
        view.overrides = dict.fromkeys(self._formats, "dense")
        view._float_dtype = "float32"
        return view

    def record(self, index: int) -> LayerRecord:
        """What is known of layer ``index``."""
        return LayerRecord(**self._work.load(_layer_file(index))[1])

    def release(self, spec: TensorSpec) -> None:
        if not spec.name.startswith("model.layers."):
            self._source.release(spec)

    def close(self) -> None:
        """The source is its opener's to close."""

    def _rounded_head(self, spec: TensorSpec, weight: Weight) -> Weight:
        form = dataclasses.replace(self._formats["lm_head"], scheme=self.scheme_of("lm_head"))
        if form.scheme == "dense":
            dtype = self._dense_dtype(spec)
            is_it = isinstance(weight, DenseTensor) and weight.dtype == dtype
            return weight if is_it else DenseTensor(narrow(weight.to_float32(), dtype), dtype)
        if isinstance(weight, DenseTensor) and form.bits == 8:
            return quantize_dense(weight)  # a head in float32 is as large as several layers
        return rounded(weight.to_float32(), form if form.bits == 4 else Format(form.scheme))

    def _from_source(self, spec: TensorSpec) -> Weight:
        """A layer that keeps floating point (in the type it is stored in), or that was moved to one scale a channel."""
        scheme = self.scheme_of(spec.name.removesuffix(".weight"))
        weight = self.folded(spec)
        if scheme != "dense":
            return rounded(weight, Format(scheme))
        dtype = self._dense_dtype(spec)
        return DenseTensor(narrow(weight, dtype), dtype)

    def _dense_dtype(self, spec: TensorSpec) -> str:
        dtype = self._float_dtype or self._source.stored()[spec.name].dtype
        return dtype if dtype in ("float32", "bfloat16") else "float32"  # a folded weight may not fit into float16

    def _stored(self, spec: TensorSpec) -> StoredTensor:
        original = self._source.stored().get(spec.name)
        file = original.file if original is not None else self.directory
        if spec.role in (Role.LINEAR, Role.HEAD):
            linear = spec.name.removesuffix(".weight")
            scheme = self.scheme_of(linear)
            if scheme != "dense":
                return _integers(spec, dataclasses.replace(self._formats[linear], scheme=scheme), linear in self.overrides, file)
            dtype = self._dense_dtype(spec)
            return StoredTensor(spec.name, spec.shape, dtype, spec.num_elements * NUMPY_DTYPES[dtype].itemsize, file)
        if spec.name.startswith("model.layers."):
            return StoredTensor(spec.name, spec.shape, "float32", 4 * spec.num_elements, file)
        assert original is not None
        return original

    def _errors(self) -> dict[str, Mapping[str, float]]:
        """Linear layer -> scheme -> relative output error."""
        if self._measured is None:
            self._measured = {}
            for index in range(self.config.num_layers):
                for name, by_scheme in self.record(index).output_errors.items():
                    self._measured[f"model.layers.{index}.{name}"] = by_scheme
            if self._work.has("head"):
                self._measured["lm_head"] = self._work.load("head")[1]
        return self._measured

    def _folds(self, index: int) -> list[Fold]:
        names = self._work.names(_layer_file(index))
        tensors = self._work.load_some(_layer_file(index), [name for name in names if name.startswith("fold.")])
        folds: list[Fold] = []
        for name in sorted(tensors):
            if name.endswith(".scale"):
                pair: Pair = name.split(".")[2]  # type: ignore[assignment]
                folds.append(Fold(pair, tensors[name], tensors.get(name.removesuffix("scale") + "shift")))
        return folds


#: fields of a Qwen2 ``config.json`` that mean nothing to a Llama
_QWEN2_ONLY = ("use_sliding_window", "sliding_window", "max_window_layers", "use_mrope", "layer_types")


def fold_weight(config: ModelConfig, linear: str, weight: Float32Array, folds: list[Fold]) -> Float32Array:
    """What folding makes of one linear weight ``[out, in]``."""
    for fold in folds:
        producer, readers = PAIRS[fold.pair]
        if linear == producer:
            weight = weight / fold.scale[:, None]
        elif linear in readers:
            weight = weight * widened(config, fold.pair, fold.scale)
    return weight


def _integers(spec: TensorSpec, form: Format, is_moved: bool, file: Path) -> StoredTensor:
    num_out, num_in = spec.shape
    if is_moved or (form.bits == 8 and form.group_size is None):
        return StoredTensor(spec.name, spec.shape, "int8", spec.num_elements + 4 * num_out, file)
    count = form.num_groups(num_in)
    nbytes = spec.num_elements * form.bits // 8 + 4 * num_out * count
    return StoredTensor(spec.name, spec.shape, f"int{form.bits}", nbytes, file, Groups(form.group_size or num_in, count))


def _split(name: str) -> tuple[int, str]:
    """``model.layers.3.mlp.up_proj.weight`` -> 3, ``mlp.up_proj.weight``."""
    _, _, index, rest = name.split(".", 3)
    return int(index), rest


def _layer_file(index: int) -> str:
    return f"layer-{index:05d}"
