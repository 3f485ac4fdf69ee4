"""``quantize``: from a checkpoint to a smaller one that is known to be good, or to a refusal.

    open -> calibration ids -> layers, one by one -> (training) -> measure -> gate -> write, with its passport

Everything up to the gate lives in a work directory beside the destination, so an interrupted run goes on at the layer where it
was. The destination is written beside its name and renamed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

import paddle_ds
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.checkpoints.dtypes import Array
from paddle_ds.checkpoints.native import write_native_into
from paddle_ds.checkpoints.new_directory import check_absent, new_directory
from paddle_ds.devices import environment
from paddle_ds.errors import RecipeError
from paddle_ds.logs import fields
from paddle_ds_slim.calibrating import CalibrationSource, calibration_ids
from paddle_ds_slim.gate import hold
from paddle_ds_slim.passport import FILE_NAME, EvalConfig, Passport, require, write_json
from paddle_ds_slim.passport.html import FILE_NAME as HTML_FILE_NAME
from paddle_ds_slim.passport.html import write_html
from paddle_ds_slim.progress import Progress, silent
from paddle_ds_slim.recipe import Gate, Qat, QuantRecipe, load_recipe
from paddle_ds_slim.result import QuantizedCheckpoint
from paddle_ds_slim.tuned import TunedCheckpoint
from paddle_ds_slim.work_directory import WorkDirectory

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What a run ends with."""

    directory: Path
    passport: Passport
    recipe: QuantRecipe


def quantize(
    src: str | Path,
    out: str | Path,
    recipe: str | Path | QuantRecipe = "w8a8-smooth",
    *,
    calibration: CalibrationSource | None = None,
    evaluation: EvalConfig | None = None,
    gate: Gate | None = None,
    tasks_are_optional: bool | None = None,
    work_dir: Path | None = None,
    progress: Progress = silent,
) -> Quantized:
    """Quantise the checkpoint ``src`` into the directory ``out``, which must not exist yet.

    Args:
        src: directory, file or hub name.
        recipe: a name such as ``w8a8-smooth``, with overlays ``w8a8-smooth+kv8-static``; a YAML file; or a recipe.
        calibration: texts; by default the model's own answers.
        evaluation: texts and tasks that quality is measured on.
        gate: budgets instead of the recipe's.
        tasks_are_optional: whether a task budget falls away for a model that answers no questions here; by default only the
            recipe's does.
        work_dir: where the directory of unfinished work, ``.<out>.work``, lies; beside ``out`` by default. Removed at the end.

    Raises:
        QualityGateError: it is not good enough; nothing was written.
        RecipeError, CalibrationError, CheckpointError: what was given cannot be used.
        QuantizationError: a method failed, or the disk refuses; finished layers are kept for the next attempt.
    """
    wanted = recipe if isinstance(recipe, QuantRecipe) else load_recipe(recipe)
    if gate is not None:
        wanted = msgspec.structs.replace(wanted, gate=gate)
    destination = check_absent(Path(out))
    environment.prepare(None)
    environment.import_paddle()
    calibration = calibration or CalibrationSource()
    with open_checkpoint(src) as source:
        _check_schemes(wanted, source)  # better said before an hour of work
        key = _key(source, wanted, calibration)
        path = work_path(destination, work_dir)
        with WorkDirectory(path).locked():
            work = WorkDirectory.open(path, key)
            job = _Job(source, wanted, calibration, evaluation or EvalConfig(), work, progress)
            passport = job.run(destination, tasks_are_optional=gate is None if tasks_are_optional is None else tasks_are_optional)
            work.remove()
    logger.info("quantize.done", extra=fields(directory=str(destination), recipe=wanted.name))
    return Quantized(destination, passport, wanted)


def work_path(out: Path, work_dir: Path | None = None) -> Path:
    """Where unfinished work of ``out`` lies."""
    out = out.expanduser().absolute()
    return (work_dir.expanduser().absolute() if work_dir is not None else out.parent) / f".{out.name}.work"


def _check_schemes(recipe: QuantRecipe, source: Checkpoint) -> None:
    """Raises:
    RecipeError: the recipe does not fit the model.
    """
    schemes = recipe.schemes(source.config)
    if set(schemes.values()) == {"dense"} and recipe.kv_cache is None:
        raise RecipeError(f"recipe {recipe.name}: every layer is dense; nothing would be quantised")
    if any(isinstance(step, Qat) for step in recipe.steps) and "w4a16" in schemes.values():
        raise RecipeError(f"recipe {recipe.name}: qat trains for 8 bits, and a layer has 4")


def _key(source: Checkpoint, recipe: QuantRecipe, calibration: CalibrationSource) -> dict[str, Any]:
    """What unfinished work belongs to. Files of the source by name, size and time: hashing gigabytes would take a minute."""
    files = sorted({stored.file for stored in source.stored().values()})
    layers = msgspec.structs.replace(recipe, gate=Gate())  # budgets change nothing of the layers
    return {
        "source": [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "config": source.raw_config(),
        "recipe": msgspec.to_builtins(layers),
        "measured": recipe.needs_data() or not recipe.gate.is_open(),
        "version": paddle_ds.__version__,
        "calibration": calibration.key(),
    }


class _Job:
    """One run, after everything was opened."""

    def __init__(
        self,
        source: Checkpoint,
        recipe: QuantRecipe,
        calibration: CalibrationSource,
        evaluation: EvalConfig,
        work: WorkDirectory,
        progress: Progress,
    ) -> None:
        self._source = source
        self._recipe = recipe
        self._calibration = calibration
        self._evaluation = evaluation
        self._work = work
        self._progress = progress
        self._trained_from: QuantizedCheckpoint | None = None

    def run(self, destination: Path, *, tasks_are_optional: bool) -> Passport:
        """Quantise, measure, repair, write.

        Raises:
            QualityGateError: see :func:`hold`; also where what was written measures otherwise than what was to be.
        """
        from paddle_ds_slim.passport.measure import Reference, compare

        ids, record = self._calibration_ids()
        result = self._layers(ids)
        reference = Reference.measure(self._source, self._evaluation, self._work.path / "reference", self._progress)
        gate = self._recipe.gate
        if gate.max_task_drop is not None and tasks_are_optional and not reference.scores.data.tasks:
            logger.info("gate.without_tasks", extra=fields(because="the model answers no questions here; no task was named"))
            gate = msgspec.structs.replace(gate, max_task_drop=None)

        def measure() -> Passport:
            return compare(reference, result, self._evaluation, budgets=gate, quick=True, progress=self._progress)

        held = hold(result, gate, measure, self._progress)
        with new_directory(destination) as partial:
            write_native_into(result, partial, lambda name, done, total: self._progress("write", name, done, total))
            with open_checkpoint(partial) as written:
                passport = compare(
                    reference,
                    written,
                    self._evaluation,
                    budgets=gate,
                    layer_outputs=result.output_errors(),
                    progress=self._progress,
                )
            require(passport.gate, str(destination))
            passport = dataclasses.replace(
                passport,
                quantized=dataclasses.replace(passport.quantized, name=destination.name),
                gate=dataclasses.replace(passport.gate, steps=held.steps),
                quantization=self._quantization(record, result),
            )
            write_json(passport, partial / FILE_NAME)
            write_html(passport, partial / HTML_FILE_NAME)
        return passport

    def _quantization(self, calibration: dict[str, Any] | None, result: QuantizedCheckpoint) -> dict[str, Any]:
        """How the checkpoint was made, for the passport."""
        # a trained model was folded in the pass before training
        passes = [self._trained_from, result] if self._trained_from is not None else [result]
        records = [(index, one.record(index)) for one in passes for index in range(one.config.num_layers)]
        fold_errors = [record.fold_error for _, record in records if record.fold_error is not None]
        choices: dict[str, dict[str, Any]] = {}
        for index, record in records:
            choices.setdefault(f"model.layers.{index}", {}).update(record.choices)
        wanted = self._recipe.weights.group_size
        return {
            "recipe": msgspec.to_builtins(self._recipe),
            "calibration": calibration,
            "fold_error": max(fold_errors, default=None),
            "choices": choices,
            "group_sizes": {name: size for name, size in result.group_sizes().items() if size != wanted},
        }

    def _calibration_ids(self) -> tuple[list[npt.NDArray[np.int64]], dict[str, Any] | None]:
        """Nothing where no step looks at activations and no gate may want to know the worst layer."""
        if not self._recipe.needs_data() and self._recipe.gate.is_open():
            return [], None
        return calibration_ids(self._source, self._recipe, self._calibration, self._work, self._progress)

    def _layers(self, ids: Sequence[npt.NDArray[np.int64]]) -> QuantizedCheckpoint:
        from paddle_ds_slim.pipeline import quantize_layers  # loads Paddle

        training = next((step for step in self._recipe.steps if isinstance(step, Qat)), None)
        result = quantize_layers(self._source, self._recipe, self._work, ids, self._progress)
        if training is None:
            return result
        self._trained_from = result
        tuned = TunedCheckpoint(result.float_view(), self._train(result, training, ids))
        rounding = msgspec.structs.replace(self._recipe, steps=self._recipe.steps[-1:])
        return quantize_layers(tuned, rounding, WorkDirectory.open(self._work.path / "tuned", {}), ids, self._progress)

    def _train(self, result: QuantizedCheckpoint, step: Qat, ids: Sequence[npt.NDArray[np.int64]]) -> dict[str, Array]:
        if not self._work.has("trained"):
            from paddle_ds_slim.qat import QatConfig, finetune  # with PaddleNLP's whole model: only for who trains

            tensors = finetune(
                result.float_view(),
                ids,
                QatConfig(step.steps, step.learning_rate, step.batch_sequences, self._calibration.seed),
                lambda done, total, loss: self._progress("train", f"loss {loss:.4f}", done, total),
                scheme=_trained_scheme(result),
                teacher=self._source,
            )
            self._work.save("trained", tensors, {})
        return self._work.load("trained")[0]


def _trained_scheme(result: QuantizedCheckpoint) -> Callable[[str], Literal["dense", "w8a16", "w8a8"]]:
    def scheme(name: str) -> Literal["dense", "w8a16", "w8a8"]:
        found = result.scheme_of(name)
        assert found != "w4a16", "checked before any work"
        return found

    return scheme
