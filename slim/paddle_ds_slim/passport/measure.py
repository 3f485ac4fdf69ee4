"""Two models, one after the other: the reference leaves what is needed of it on disk, and the other one is held against that."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping
from pathlib import Path

from paddle_ds.checkpoints.base import Checkpoint
from paddle_ds.config.engine import EngineConfig
from paddle_ds.engine.assets import recipe_for
from paddle_ds.engine.build import LoadedModel
from paddle_ds.engine.llm import LLM
from paddle_ds.errors import CalibrationError, ConfigError, ConfigMismatchError, QuantizationError
from paddle_ds.text import Tokenizer
from paddle_ds_slim.calibration import SELF_GENERATED
from paddle_ds_slim.calibration_files import TokenSample
from paddle_ds_slim.passport.activations import keep_inputs
from paddle_ds_slim.passport.assemble import assemble
from paddle_ds_slim.passport.config import EvalConfig
from paddle_ds_slim.passport.data import (
    EvalData,
    TextData,
    answers_of,
    cut,
    greedy_prompts,
    question_ids,
    reasons,
    tasks_of,
    texts_of,
)
from paddle_ds_slim.passport.distributions import TextScores, score, score_and_keep
from paddle_ds_slim.passport.layers import layer_errors
from paddle_ds_slim.passport.record import LayerError, Passport
from paddle_ds_slim.passport.scores import ModelScores, load_model, measure_model, needed_tokens
from paddle_ds_slim.progress import Progress, silent
from paddle_ds_slim.recipe import Gate
from paddle_ds_slim.self_generated import questions_for, self_generate

#: of texts that a model writes itself: longest answer, and about what one gives
_SELF_TOKENS, _SELF_TOKENS_EACH = 256, 128
_MIN_SELF_ANSWERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What is kept of the reference once it is out of memory. Make one by :meth:`measure`.

    Attributes:
        checkpoint: is read again for the errors of layers, so it must stay open until the last :func:`compare`.
        scores: its figures, and the data that the other model will read, too.
        distributions: text -> file of log-probabilities, in the scratch directory.
        inputs: linear layer -> file of what it reads, in the scratch directory.
    """

    checkpoint: Checkpoint
    config: EvalConfig
    scores: ModelScores
    distributions: Mapping[str, Path]
    inputs: Mapping[str, Path]

    @classmethod
    def measure(cls, checkpoint: Checkpoint, config: EvalConfig, scratch: Path, progress: Progress = silent) -> Reference:
        """Run the reference once, in floating point with a float32 cache, and let go of it.

        Args:
            scratch: a directory for its distributions: 4 bytes times vocabulary times predicted tokens of all texts. The caller
                removes it after the last comparison.

        Raises:
            CalibrationError: a text or task cannot be used.
            QuantizationError: the scratch directory cannot be written.
            PaddleDSError: the model cannot be loaded or run.
        """
        try:
            scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QuantizationError(f"{scratch}: cannot be made: {error}") from error
        reference = _measure_reference(checkpoint, config, scratch, progress)
        gc.collect()  # the next model needs the memory
        return reference


def compare(
    reference: Reference,
    checkpoint: Checkpoint,
    config: EvalConfig,
    *,
    budgets: Gate = Gate(),  # noqa: B008 - frozen
    layer_outputs: Mapping[str, float] | None = None,
    quick: bool = False,
    progress: Progress = silent,
) -> Passport:
    """Hold ``checkpoint``, run as it is stored (INT8 if it is in floating point), against the reference.

    Args:
        config: the one that ``reference`` was measured with.
        budgets: end up in the passport's ``gate``, with what they were held against.
        layer_outputs: linear layer -> relative error of its output, from whoever measured it on more data; the others are
            measured on ``config.layer_tokens`` tokens.
        quick: only what budgets look at: texts, and tasks where there is a budget for them.

    Raises:
        ConfigError: ``config`` is another one.
        ConfigMismatchError: the models have different vocabularies.
        PaddleDSError: the model cannot be loaded or run.
    """
    if config != reference.config:
        raise ConfigError("the reference was measured under another configuration; measure it again under this one")
    _check_vocabulary(reference, checkpoint)
    data = reference.scores.data
    if quick:
        config = config.without_extras(keep_tasks=budgets.max_task_drop is not None)
        data = dataclasses.replace(data, prompts=(), tasks={} if config.tasks == {} else data.tasks)
    scores = _measure_quantized(checkpoint, config, data, reference.distributions, progress)
    gc.collect()
    layers: tuple[LayerError, ...] = ()
    if not quick:
        recipe = recipe_for(checkpoint, EngineConfig(quant="auto"))
        layers = layer_errors(
            reference.checkpoint,
            checkpoint,
            recipe,
            reference.inputs,
            layer_outputs,
            lambda name, done, total: progress("layers", name, done, total),
        )
    return assemble(config, reference.scores, scores, layers, budgets, quick=quick)


def measure_alone(checkpoint: Checkpoint, config: EvalConfig, *, quick: bool = False, progress: Progress = silent) -> Passport:
    """The figures of a checkpoint that has no reference; whatever compares is ``None``.

    Args:
        quick: as in :func:`compare`, with no budget for tasks.

    Raises:
        PaddleDSError: as :func:`compare`, and :meth:`Reference.measure`.
    """
    if quick:
        config = config.without_extras(keep_tasks=False)
    data = _data(Tokenizer.from_dir(checkpoint.directory), checkpoint, config)
    scores = _measure_quantized(checkpoint, config, data, {}, progress)
    gc.collect()
    return assemble(config, None, scores, (), Gate(), quick=quick)


def _measure_reference(checkpoint: Checkpoint, config: EvalConfig, scratch: Path, progress: Progress) -> Reference:
    data = _data(Tokenizer.from_dir(checkpoint.directory), checkpoint, config)
    loaded = load_model(checkpoint, "none", "float32", _room(config, data), "reference", progress)
    data = _completed(loaded, config, data, "reference", progress)
    files = {name: scratch / f"text-{number}.logp" for number, name in enumerate(data.texts)}
    inputs: dict[str, Path] = {}
    if config.layer_tokens:
        inputs = keep_inputs(loaded.runner, next(iter(data.texts.values())).pieces, config.layer_tokens, scratch)

    def keep(name: str, text: TextData, on_tokens: Callable[[int], None]) -> TextScores:
        return score_and_keep(loaded.runner, text, files[name], on_tokens)

    scores = measure_model(loaded, checkpoint, config, data, keep, "reference", progress)
    return Reference(checkpoint, config, scores, files, inputs)


def _measure_quantized(
    checkpoint: Checkpoint, config: EvalConfig, data: EvalData, distributions: Mapping[str, Path], progress: Progress
) -> ModelScores:
    """``distributions`` is empty where there is no reference."""
    loaded = load_model(checkpoint, "auto", "auto", _room(config, data), "quantized", progress)
    data = _completed(loaded, config, data, "quantized", progress)

    def hold(name: str, text: TextData, on_tokens: Callable[[int], None]) -> TextScores:
        return score(loaded.runner, text, distributions.get(name), on_tokens)

    return measure_model(loaded, checkpoint, config, data, hold, "quantized", progress)


def _data(tokenizer: Tokenizer, checkpoint: Checkpoint, config: EvalConfig) -> EvalData:
    """All but texts that a model has yet to write, and prompts that are made of texts."""
    texts = texts_of(tokenizer, config, checkpoint.config.max_position_embeddings)
    prompts = greedy_prompts(tokenizer, config, texts)
    return EvalData(texts, tasks_of(tokenizer, config), prompts, reasons(tokenizer))


def _room(config: EvalConfig, data: EvalData) -> int:
    """Tokens of context that the first model needs: it may have texts to write."""
    unknown = 0 if data.texts else max(config.window_tokens, 2 * _SELF_TOKENS)
    return max(needed_tokens(config, data), unknown)


def _completed(loaded: LoadedModel, config: EvalConfig, data: EvalData, stage: str, progress: Progress) -> EvalData:
    """``data``, with a text that the model writes itself where it has none: at temperature 1, so that its loss is far from 0."""
    if data.texts:
        return data
    progress(stage, SELF_GENERATED, 0, 1)
    count = max(_MIN_SELF_ANSWERS, config.max_tokens_per_text // _SELF_TOKENS_EACH)
    asked = questions_for(loaded.tokenizer, count, seed=config.seed)
    limits = {"max_new_tokens": _SELF_TOKENS, "temperature": 1.0, "top_p": 1.0}
    samples = self_generate(LLM.of(loaded), asked, count, seed=config.seed, **limits)  # type: ignore[arg-type]
    written = [sample.token_ids for sample in samples if isinstance(sample, TokenSample)]
    bos_id, window = loaded.tokenizer.bos_id, min(config.window_tokens, loaded.engine.limits.max_context_tokens)
    if loaded.tokenizer.chat_template is None:
        pieces = cut(written, window, config.max_tokens_per_text, bos_id)
    else:
        prompts = [question_ids(loaded.tokenizer, question) for question in asked]
        pieces = answers_of(written, prompts, window, config.max_tokens_per_text)
    if not pieces:
        raise CalibrationError(
            f"eval: window_tokens is {config.window_tokens}, and no answer of {loaded.name} to a question fits into that"
        )
    texts = {SELF_GENERATED: TextData(SELF_GENERATED, pieces)}
    return dataclasses.replace(data, texts=texts, prompts=greedy_prompts(loaded.tokenizer, config, texts))


def _check_vocabulary(reference: Reference, checkpoint: Checkpoint) -> None:
    """Distributions are compared token by token, so tokens must be the same ones."""
    ours, theirs = checkpoint.config.vocab_size, reference.checkpoint.config.vocab_size
    where = f"{checkpoint.directory} and its reference {reference.checkpoint.directory}"
    if ours != theirs:
        raise ConfigMismatchError(f"{where}: have vocabularies of {ours} and {theirs} tokens; they cannot be compared")
    if checkpoint.directory == reference.checkpoint.directory:
        return
    tokenizers = [Tokenizer.from_dir(c.directory) for c in (checkpoint, reference.checkpoint)]
    pieces = [text.pieces[0].ids for text in reference.scores.data.texts.values()]
    one, other = ([tokenizer.decode(ids, skip_special_tokens=False) for ids in pieces] for tokenizer in tokenizers)
    if one != other:
        raise ConfigMismatchError(f"{where}: the same token ids are other texts to their tokenizers; they cannot be compared")
