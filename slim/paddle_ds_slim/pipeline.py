"""Layer by layer: one PaddleNLP decoder layer in float32 at a time, its calibration inputs, and the integers that come out.

In memory at once: the weights of one layer (twice while folding), what its linears read, and the stream between layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from paddle_ds.checkpoints.base import Checkpoint, DenseTensor, Int8Weight, Weight
from paddle_ds.checkpoints.dtypes import Array, Float32Array
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Scheme
from paddle_ds.config.tensors import Role, layer_specs, model_specs
from paddle_ds.errors import QuantizationError
from paddle_ds_slim.block_state import READERS, BlockState
from paddle_ds_slim.kv_scales import static_scales
from paddle_ds_slim.paddlenlp_model import block_linears, build_block, load_block, run_block
from paddle_ds_slim.progress import Progress
from paddle_ds_slim.recipe import REPAIRS, QuantRecipe, Shift
from paddle_ds_slim.result import LayerRecord, QuantizedCheckpoint, save_layer
from paddle_ds_slim.rounding import Format, as_run, fitting_group_size, relative_error, rounded
from paddle_ds_slim.steps import apply, is_folding
from paddle_ds_slim.steps.search import spread_rows
from paddle_ds_slim.work_directory import WorkDirectory

#: how far folding may move any token's row in a layer's output, and in what the head reads
MAX_FOLD_ERROR = 1e-4
#: tokens on which output errors are measured, and on which folded and original model are compared to the end
_ERROR_TOKENS = 256
_PROBE_TOKENS = 128
#: rows of the head that are rounded at a time
_HEAD_ROWS = 8192
_PROBE_ORIGINAL, _PROBE_FOLDED = 0, 1


def formats_for(recipe: QuantRecipe, config: ModelConfig) -> dict[str, Format]:
    """Linear layer -> how it is held. A group size that does not divide the inputs of a layer gives way to one that does."""
    schemes = recipe.schemes(config)
    inputs = {spec.name.removesuffix(".weight"): spec.shape[1] for spec in model_specs(config) if len(spec.shape) == 2}
    wanted = recipe.weights.group_size
    return {
        name: Format(scheme, fitting_group_size(inputs.get(name, config.hidden_size), wanted) if scheme == "w4a16" else None)
        for name, scheme in schemes.items()
    }


def quantized_config(recipe: QuantRecipe, config: ModelConfig) -> ModelConfig:
    """``config``, with biases on the attention's linears where a shift needs them: a Llama, which both architectures can be."""
    if not any(isinstance(step, Shift) for step in recipe.steps):
        return config
    return dataclasses.replace(config, architecture="LlamaForCausalLM", qkv_bias=True, o_bias=True)


def quantize_layers(
    source: Checkpoint, recipe: QuantRecipe, work: WorkDirectory, token_ids: Sequence[npt.NDArray[np.int64]], progress: Progress
) -> QuantizedCheckpoint:
    """Quantise every decoder layer that ``work`` does not have yet.

    Raises:
        QuantizationError: folding changed the function, a method failed, or the disk refuses; finished layers are kept.
    """
    run = _Run(source, recipe, work, token_ids)
    for index in range(run.first, source.config.num_layers):
        progress("layers", f"layer {index}", index, source.config.num_layers)
        run.layer(index)
    progress("layers", "", source.config.num_layers, source.config.num_layers)
    run.finish()
    dynamic = None if recipe.kv_cache is None else recipe.kv_cache.scales == "dynamic"
    return QuantizedCheckpoint(source, work, quantized_config(recipe, source.config), run.formats, dynamic)


class _Run:
    """One pass over the layers."""

    def __init__(
        self, source: Checkpoint, recipe: QuantRecipe, work: WorkDirectory, token_ids: Sequence[npt.NDArray[np.int64]]
    ) -> None:
        self._source = source
        self._recipe = recipe
        self._work = work
        self._config = source.config
        self.formats = formats_for(recipe, source.config)
        self._specs = {spec.name: spec for spec in model_specs(source.config)}
        self._folds_anything = any(is_folding(step) for step in recipe.steps)
        finished = work.num_finished()
        if finished is None:
            work.save_stream(0, self._embedded(token_ids))
            finished = 0
        self.first = finished
        stream = work.load_stream(finished)
        num_probes = 2 if self._folds_anything else 0
        self._probes, self._stream = stream[:num_probes], stream[num_probes:]
        self._block: Any = build_block(self._config, 0) if self._stream else None

    def _embedded(self, token_ids: Sequence[npt.NDArray[np.int64]]) -> list[Array]:
        if not token_ids:
            return []
        spec = self._specs["model.embed_tokens.weight"]
        table = self._source.read(spec)
        stream = [_rows(table, ids) for ids in token_ids]
        self._source.release(spec)
        probes = [stream[0][:_PROBE_TOKENS]] * 2 if self._folds_anything else []
        return [*probes, *stream]

    def layer(self, index: int) -> None:
        """Quantise one layer, and keep it."""
        prefix = f"model.layers.{index}."
        original = self._read(index)
        tensors = {name.removeprefix(prefix): values for name, values in original.items()}
        inputs, outputs = self._calibrate(original)
        formats = {name.removeprefix(prefix): form for name, form in self.formats.items() if name.startswith(prefix)}
        state = BlockState(self._config, index, tensors, inputs, formats)
        fold_error = self._apply_steps(state, original)
        del original
        record = LayerRecord(self._output_errors(state), state.choices, fold_error)
        kv = static_scales(state, self._recipe, [len(sequence) for sequence in self._stream])
        if self._recipe.propagate == "quantized" and self._stream:
            outputs = self._run_quantized(state)
        self._fill_biases(state)
        save_layer(self._work, state, record, kv)
        self._stream = outputs
        self._work.save_stream(index + 1, [*self._probes, *outputs])

    def _read(self, index: int) -> dict[str, Float32Array]:
        tensors: dict[str, Float32Array] = {}
        for spec in layer_specs(self._config, index):
            weight = self._source.read(spec).to_float32()
            tensors[spec.name] = weight if weight.flags.writeable else weight.copy()
            self._source.release(spec)
        return tensors

    def _calibrate(self, tensors: Mapping[str, Float32Array]) -> tuple[dict[str, Float32Array], list[Array]]:
        """What each group of linears reads, float32 ``[tokens, in]`` by its first one, and what the layer puts out."""
        if self._block is None:
            return {}, []
        load_block(self._block, tensors)
        linears = block_linears(self._block)
        recorded: dict[str, list[Float32Array]] = {name: [] for name in set(READERS.values())}
        hooks = [linears[name].register_forward_pre_hook(_recorder(pieces)) for name, pieces in recorded.items()]
        try:
            outputs: list[Array] = [run_block(self._block, sequence[None])[0] for sequence in self._stream]
        finally:
            for hook in hooks:
                hook.remove()
        bad = next((i for i, values in enumerate(outputs) if not np.isfinite(values).all()), None)
        if bad is not None:
            raise QuantizationError(f"calibration sequence {bad} overflows float32: the checkpoint itself is broken")
        inputs: dict[str, Float32Array] = {}
        for name, pieces in recorded.items():
            inputs[name] = np.concatenate(pieces)
            pieces.clear()
        return inputs, outputs

    def _observe(self, state: BlockState) -> None:
        """Scales by PaddleSlim's observer of weights; a step that chooses scales itself overrules them."""
        from paddle_ds_slim.paddleslim_adapter import channel_scales

        for name, form in state.formats.items():
            if form.scheme != "dense" and form.group_size is None and form.bits == 8:
                state.scales[name] = channel_scales(state.weight(name), self._recipe.weights.observer).reshape(-1, 1)

    def _apply_steps(self, state: BlockState, original: Mapping[str, Float32Array]) -> float | None:
        """Run the recipe's steps; folding is checked before anything is rounded. Returns the fold's error."""
        folding = [step for step in self._recipe.steps if is_folding(step)]
        for step in folding:
            apply(step, state)
        fold_error = self._check_fold(state, original) if folding else None
        if self._recipe.weights.observer != "absmax":
            self._observe(state)  # of weights as they are rounded: after folding
        for step in self._recipe.steps:
            if not is_folding(step) and type(step).__name__ != "Qat":
                try:
                    apply(step, state)
                except ValueError as error:
                    raise QuantizationError(f"layer {state.index}: a weight cannot be rounded: {error}") from error
        return fold_error

    def _check_fold(self, state: BlockState, original: Mapping[str, Float32Array]) -> float:
        """Compare the folded layer with the original one on the first sequence's tokens, and move both probes on."""
        prefix = f"model.layers.{state.index}."
        folded = {prefix + name: values for name, values in state.tensors.items()}
        load_block(self._block, original)
        wanted = run_block(self._block, self._probes[_PROBE_ORIGINAL][None])[0]
        load_block(self._block, folded)
        found = run_block(self._block, self._probes[_PROBE_ORIGINAL][None])[0]
        error = _largest_change(wanted, found)
        if not error <= MAX_FOLD_ERROR:
            raise QuantizationError(
                f"layer {state.index}: folding {', '.join(fold.pair for fold in state.folds)} changes its output by {error:.1e} "
                f"of a token's own; at most {MAX_FOLD_ERROR:.0e} is float32's own noise. Leave the step out, or a pair of it"
            )
        self._probes = [wanted, run_block(self._block, self._probes[_PROBE_FOLDED][None])[0]]
        return error

    def finish(self) -> None:
        """Compare what the head reads in the folded and the original model, and measure the head's own error.

        Raises:
            QuantizationError: folding, over all layers, has changed it.
        """
        norm = self._source.read(self._specs["model.norm.weight"]).to_float32()
        epsilon = self._config.rms_norm_eps
        if self._stream and self.formats["lm_head"].scheme != "dense" and not self._work.has("head"):
            tail = np.concatenate([sequence[-1:] for sequence in self._stream])
            self._measure_head(_rms_norm(spread_rows(tail, _ERROR_TOKENS), norm, epsilon))
        if not self._probes:
            return
        rows = [_rms_norm(probe, norm, epsilon) for probe in self._probes]
        error = _largest_change(rows[_PROBE_ORIGINAL], rows[_PROBE_FOLDED])
        if not error <= MAX_FOLD_ERROR:
            raise QuantizationError(
                f"folding changes what the head reads by {error:.1e} of a token's own; expected float32's noise"
            )

    def _output_errors(self, state: BlockState) -> dict[str, dict[str, float]]:
        """Relative output error of each linear as it is rounded, and as the gate might have it instead."""
        errors: dict[str, dict[str, float]] = {}
        for name, form in state.formats.items():
            if form.scheme == "dense" or not state.inputs:
                continue
            x = spread_rows(state.input_of(name), _ERROR_TOKENS)
            exact = x @ state.weight(name).T
            errors[name] = {form.scheme: _output_error(x, exact, state.rounded[name], form.scheme)}
            for scheme in REPAIRS[form.scheme]:
                if scheme != "dense":
                    moved = rounded(state.weight(name), Format(scheme))
                    errors[name][scheme] = _output_error(x, exact, moved, scheme)
        return errors

    def _measure_head(self, x: Float32Array) -> None:
        """Relative output error of the head for each scheme it may have; some thousand rows of it at a time."""
        spec = self._specs["lm_head.weight"]
        form = self.formats["lm_head"]
        weight = self._source.read(spec)
        forms = [form, *(Format(scheme) for scheme in REPAIRS[form.scheme] if scheme != "dense")]
        exact_square, wrong_square = 0.0, [0.0] * len(forms)
        for first in range(0, spec.shape[0], _HEAD_ROWS):
            rows = _some_rows(weight, slice(first, first + _HEAD_ROWS))
            exact = x @ rows.T
            exact_square += float(np.vdot(exact, exact))
            for number, other in enumerate(forms):
                wrong = as_run(x, other.scheme) @ rounded(rows, other).to_float32().T - exact
                wrong_square[number] += float(np.vdot(wrong, wrong))
        self._source.release(spec)
        errors = [(square / exact_square) ** 0.5 if exact_square else 0.0 for square in wrong_square]
        self._work.save("head", {"of": np.zeros(1, np.int8)}, {other.scheme: e for other, e in zip(forms, errors, strict=True)})

    def _run_quantized(self, state: BlockState) -> list[Array]:
        """What the layer puts out with its integers, activations rounded as they will be."""
        prefix = f"model.layers.{state.index}."
        tensors = {prefix + name: values for name, values in state.tensors.items()}
        for name, weight in state.rounded.items():
            tensors[f"{prefix}{name}.weight"] = weight.to_float32()
        load_block(self._block, tensors)
        linears = block_linears(self._block)
        rounding = [name for name, form in state.formats.items() if form.scheme == "w8a8"]
        hooks = [linears[name].register_forward_pre_hook(_round_tokens) for name in rounding]
        try:
            return [run_block(self._block, sequence[None])[0] for sequence in self._stream]
        finally:
            for hook in hooks:
                hook.remove()

    def _fill_biases(self, state: BlockState) -> None:
        """Zeros for the biases that the new config implies and nothing was folded into."""
        config = quantized_config(self._recipe, self._config)
        for spec in layer_specs(config, state.index):
            name = spec.name.removeprefix(f"model.layers.{state.index}.")
            if spec.role is Role.BIAS and name not in state.tensors:
                state.tensors[name] = np.zeros(spec.shape, np.float32)


def _rows(table: Weight, ids: npt.NDArray[np.int64]) -> Float32Array:
    """Embeddings of some tokens, float32 ``[T, H]``."""
    used, places = np.unique(ids, return_inverse=True)
    rows: Float32Array = _some_rows(table, used)[places.reshape(-1)]
    return rows


def _some_rows(weight: Weight, rows: slice | npt.NDArray[np.intp]) -> Float32Array:
    if isinstance(weight, DenseTensor):
        return DenseTensor(weight.values[rows], weight.dtype).to_float32()
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.values[rows], weight.scales[rows]).to_float32()
    zeros = None if weight.zero_points is None else weight.zero_points[rows]
    return dataclasses.replace(weight, values=weight.values[rows], scales=weight.scales[rows], zero_points=zeros).to_float32()


def _recorder(pieces: list[Float32Array]) -> Any:
    def record(layer: Any, inputs: tuple[paddle.Tensor, ...]) -> None:
        (x,) = inputs
        pieces.append(x.numpy().reshape(-1, x.shape[-1]))

    return record


def _round_tokens(layer: Any, inputs: tuple[paddle.Tensor, ...]) -> tuple[paddle.Tensor, ...]:
    (x,) = inputs
    values = x.numpy()
    return (paddle.to_tensor(as_run(values.reshape(-1, values.shape[-1]), "w8a8").reshape(values.shape)),)


def _output_error(x: Float32Array, exact: Float32Array, weight: Weight, scheme: Scheme) -> float:
    return relative_error(exact, as_run(x, scheme) @ weight.to_float32().T)


def _largest_change(wanted: Float32Array, found: Float32Array) -> float:
    """The largest relative change of a token's row, ``||found - wanted|| / ||wanted||``: no loud token hides the others."""
    norms = np.linalg.norm(wanted, axis=1)
    changes = np.linalg.norm(found - wanted, axis=1)
    return float((changes / np.where(norms > 0, norms, 1)).max(initial=0.0))


def _rms_norm(x: Float32Array, weight: Float32Array, epsilon: float) -> Float32Array:
    result: Float32Array = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(epsilon)) * weight
    return result
