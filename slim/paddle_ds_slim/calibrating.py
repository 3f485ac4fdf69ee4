"""Which token ids a run calibrates on: a file's, or the model's own answers.

They are kept in the work directory, so that a run that goes on later does not sample them again.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.config.engine import EngineConfig, SchedulerConfig
from paddle_ds.text import Tokenizer
from paddle_ds_slim.calibration import CalibrationConfig, CalibrationSet, calibration_set, read_samples
from paddle_ds_slim.calibration_files import Sample
from paddle_ds_slim.progress import Progress
from paddle_ds_slim.recipe import QuantRecipe
from paddle_ds_slim.self_generated import questions_for, questions_of, self_generate
from paddle_ds_slim.work_directory import WorkDirectory

#: where nobody says how many samples a model is to write, it goes on until they hold this many tokens
_ENOUGH_TOKENS = 4096
_MOST_SAMPLES = 256
_SAVED = "calibration"


@dataclasses.dataclass(frozen=True)
class CalibrationSource:
    """What a user asked for.

    Attributes:
        file: texts, or questions where ``self_generate`` is given, too.
        self_generate: how many answers the model writes itself; ``None`` without a file: as many as are needed.
        seed: picks texts, and samples answers.
    """

    file: Path | None = None
    self_generate: int | None = None
    seed: int = 0

    def key(self) -> dict[str, Any]:
        """What tells one from another; a file by its contents."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest() if self.file is not None and self.file.is_file() else None
        return {"file": digest, "self_generate": self.self_generate, "seed": self.seed}


def calibration_ids(
    source: Checkpoint, recipe: QuantRecipe, wanted: CalibrationSource, work: WorkDirectory, progress: Progress
) -> tuple[list[npt.NDArray[np.int64]], dict[str, Any]]:
    """Token ids of each sequence, and a record of where they are from.

    Raises:
        CalibrationError: a file cannot be used, or there is too little text.
    """
    if not work.has(_SAVED):
        progress("calibrate", "reading" if wanted.self_generate is None and wanted.file else "the model writes", 0, 1)
        found = _prepare(source, recipe, wanted)
        tensors = {f"sequence-{i:05d}": ids for i, ids in enumerate(found.token_ids)}
        work.save(_SAVED, tensors, found.record())
        progress("calibrate", "", 1, 1)
    tensors, record = work.load(_SAVED)
    return [tensors[name].astype(np.int64) for name in sorted(tensors)], record


def _prepare(source: Checkpoint, recipe: QuantRecipe, wanted: CalibrationSource) -> CalibrationSet:
    tokenizer = Tokenizer.from_dir(source.directory)
    # a sample of the model's own is at most as long as the model can see
    tokens = min(recipe.calibration.sequence_tokens, source.config.max_position_embeddings)
    config = CalibrationConfig(recipe.calibration.num_sequences, tokens, wanted.seed)
    samples = read_samples(wanted.file) if wanted.file is not None else []
    if wanted.file is not None and wanted.self_generate is None:
        return calibration_set(tokenizer, samples, config)
    count = wanted.self_generate or recipe.calibration.num_sequences
    while True:
        written = _write(source, tokenizer, samples, count, tokens, wanted.seed)
        found = calibration_set(tokenizer, written, dataclasses.replace(config, num_sequences=count))
        if wanted.self_generate is not None or found.num_tokens >= _ENOUGH_TOKENS or count >= _MOST_SAMPLES:
            return found
        count = min(_MOST_SAMPLES, 2 * count)


def _write(
    source: Checkpoint, tokenizer: Tokenizer, questions: list[Sample], count: int, max_tokens: int, seed: int
) -> list[Sample]:
    """The model's own answers, in floating point: quantised by a nearest rounding it might write nonsense."""
    from paddle_ds.engine.build import load_opened
    from paddle_ds.engine.llm import LLM

    scheduler = SchedulerConfig(max_waiting_requests=max(1, count))
    config = EngineConfig(model=str(source.directory), quant="none", max_context_tokens=None, scheduler=scheduler)
    llm = LLM.of(load_opened(source, config))
    try:
        asked = questions_of(questions) if questions else questions_for(tokenizer, count, seed=seed)
        return self_generate(llm, asked, count, seed=seed, max_new_tokens=max_tokens)
    finally:
        del llm
        gc.collect()
