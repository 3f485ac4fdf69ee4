"""Two models measured one after the other, against what they compute in one place."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints import makers
from engine.parity import all_logits, make_runner
from paddle_ds import LLM, SamplingParams
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.config.engine import EngineConfig
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.engine.build import load_opened
from paddle_ds.errors import CalibrationError, ConfigError, ConfigMismatchError, QuantizationError
from paddle_ds.runtime.evaluate import mean_loss
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds_slim.passport import EvalConfig, Passport
from paddle_ds_slim.passport.data import Piece, TextData
from paddle_ds_slim.passport.distributions import divergence, log_softmax, score
from paddle_ds_slim.passport.measure import Reference, compare, measure_alone
from paddle_ds_slim.recipe import Gate

TEXT = [[5, 17, 300, 4, 800, 21, 9, 11, 12, 13, 40, 41], [7, 8, 9]]
#: nothing but texts
TEXTS_ALONE = EvalConfig(texts={"ids": TEXT}, tasks={}, greedy_prompts=0, speed_tokens=0, layer_tokens=0)


def random_model(directory: Path, seed: int = 0, **changes: object) -> Path:
    """A tiny random model in floating point with the embedded model's tokenizer."""
    config = makers.config_json(**{"vocab_size": 1024, "max_position_embeddings": 256, **changes})
    makers.write_hf(directory, config, makers.random_tensors(config, seed))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_MODEL / name, directory)
    return directory


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("models") / "model")


def measured(reference: Path, other: Path, config: EvalConfig, scratch: Path, **options: object) -> Passport:
    with open_checkpoint(reference) as source, open_checkpoint(other) as checkpoint:
        return compare(Reference.measure(source, config, scratch), checkpoint, config, **options)  # type: ignore[arg-type]


def test_a_checkpoint_that_is_open_is_loaded_as_one_that_is_named() -> None:
    greedy = SamplingParams(temperature=0)
    with open_checkpoint(EMBEDDED_MODEL) as checkpoint:
        loaded = load_opened(checkpoint, EngineConfig())
        assert checkpoint.stored()
    named = LLM()
    assert (loaded.name, loaded.recipe, loaded.kernels) == ("tiny-r1", named.loaded.recipe, named.loaded.kernels)
    assert LLM.of(loaded).generate("12+7", greedy)[0].completions == named.generate("12+7", greedy)[0].completions


def test_losses_and_divergences_are_those_of_the_logits(float_model: Path, tmp_path: Path) -> None:
    passport = measured(float_model, float_model, TEXTS_ALONE, tmp_path)
    exact, rounded = make_runner(float_model, "none"), make_runner(float_model, "w8a8")
    change = passport.loss["ids"]
    assert change.reference == pytest.approx(mean_loss(exact, TEXT)[0], rel=1e-9)
    assert change.quantized == pytest.approx(mean_loss(rounded, TEXT)[0], rel=1e-9)
    assert change.increase == pytest.approx(change.quantized / change.reference - 1)  # type: ignore[operator]
    pairs = [(log_softmax(all_logits(exact, ids)[:-1]), log_softmax(all_logits(rounded, ids)[:-1])) for ids in TEXT]
    values = np.concatenate([divergence(one, other) for one, other in pairs])
    kl = passport.kl
    assert kl is not None
    assert (kl.mean, kl.max) == (pytest.approx(values.mean(), rel=1e-3), pytest.approx(values.max(), rel=1e-3))
    assert kl.p99 == pytest.approx(np.quantile(values, 0.99), rel=1e-3)
    assert kl.num_tokens == sum(kl.histogram.counts) == 13
    same = np.concatenate([one.argmax(1) == other.argmax(1) for one, other in pairs])
    assert passport.top1_agreement == pytest.approx(same.mean())


def test_the_same_model_diverges_from_itself_by_rounding_alone(float_model: Path, tmp_path: Path) -> None:
    with open_checkpoint(float_model) as checkpoint:
        reference = Reference.measure(checkpoint, TEXTS_ALONE, tmp_path)
        loaded = load_opened(checkpoint, EngineConfig(quant="none"))
    text = reference.scores.data.texts["ids"]
    scores = score(loaded.runner, text, reference.distributions["ids"], lambda count: None)
    assert scores.divergences is not None
    assert scores.divergences.max() < 1e-6
    assert np.array_equal(scores.top1, reference.scores.texts["ids"].top1)


def test_of_a_piece_only_the_tokens_from_its_start_on_are_predicted(float_model: Path) -> None:
    runner = make_runner(float_model)
    ids = tuple(range(5, 25))

    def losses(start: int) -> np.ndarray:
        return score(runner, TextData("", (Piece(ids, start),)), None, lambda count: None).losses

    whole = losses(1)
    assert len(whole) == 19
    for start in (2, 7, 19):
        assert np.array_equal(losses(start), whole[start - 1 :])


def test_long_pieces_are_read_in_chunks_of_the_same_result(float_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(float_model)
    text = TextData("", (Piece(tuple(range(5, 45)), 12), Piece(tuple(range(60, 90)))))
    whole = score(runner, text, None, lambda count: None)
    monkeypatch.setattr("paddle_ds_slim.passport.distributions._MAX_CHUNK_TOKENS", 7)
    monkeypatch.setattr("paddle_ds_slim.passport.distributions._BLOCK_ELEMENTS", 3 * 1024)
    counts: list[int] = []
    pieces = score(runner, text, None, counts.append)
    np.testing.assert_allclose(pieces.losses, whole.losses, rtol=1e-5)
    assert np.array_equal(pieces.top1, whole.top1)
    assert (sum(counts), max(counts)) == (text.num_predicted, 3)


def test_the_reference_is_out_of_memory_before_the_other_is_loaded(float_model: Path, tmp_path: Path) -> None:
    def runners() -> int:
        gc.collect()
        return sum(isinstance(thing, ModelRunner) for thing in gc.get_objects())

    before = runners()
    with open_checkpoint(float_model) as checkpoint:
        reference = Reference.measure(checkpoint, TEXTS_ALONE, tmp_path)
        assert runners() == before
        compare(reference, checkpoint, TEXTS_ALONE)
    assert runners() == before


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Passport:
    """Everything that is measured of the embedded model by default."""
    config = EvalConfig(task_limit=10, greedy_prompts=4, greedy_tokens=12, max_tokens_per_text=200, speed_tokens=4)
    return measured(EMBEDDED_MODEL, EMBEDDED_MODEL, config, tmp_path_factory.mktemp("scratch"), budgets=Gate(max_kl=0.01))


def test_by_default_the_model_writes_its_text_and_does_sums(embedded: Passport) -> None:
    assert embedded.data.texts["self-generated"].source == "self-generated"
    assert embedded.data.tasks["arithmetic"].source == "built-in"
    assert 0 < embedded.data.texts["self-generated"].count <= 200
    assert embedded.loss["self-generated"].reference < 0.1  # type: ignore[operator]
    task = embedded.tasks["arithmetic"]
    assert task.num_items == 10
    assert task.quantized.num_right >= 9
    assert task.drop is not None
    assert task.drop.low <= task.drop.value <= task.drop.high
    assert embedded.gate.passed


def test_health_of_reasoning_is_that_of_a_healthy_model(embedded: Passport) -> None:
    health = embedded.reasoning
    assert health is not None
    assert health.closed is not None
    assert (health.num_answers, health.closed.quantized, health.loops.quantized) == (10, 1.0, 0.0)
    assert health.mean_tokens.ratio == pytest.approx(1, abs=0.2)


def test_continuations_sizes_and_speed_are_measured(embedded: Passport) -> None:
    assert embedded.greedy is not None
    assert (embedded.greedy.num_prompts, embedded.greedy.max_tokens) == (4, 12)
    assert 0 < embedded.greedy.mean <= 12
    assert embedded.bytes.ratio == 1
    assert embedded.bytes.quantized == pytest.approx((EMBEDDED_MODEL / "model.safetensors").stat().st_size, rel=0.02)
    assert embedded.decode_tokens_per_s is not None
    assert embedded.decode_tokens_per_s.quantized is not None
    assert embedded.versions["paddle_ds"] is not None
    assert len(embedded.layers) == 7 * 4 + 1
    json.loads(embedded.to_json())


def test_an_answer_that_is_cut_neither_closes_nor_counts(tmp_path: Path) -> None:
    config = EvalConfig(texts={"ids": TEXT}, task_limit=3, max_answer_tokens=4, greedy_prompts=0, speed_tokens=0, layer_tokens=0)
    passport = measured(EMBEDDED_MODEL, EMBEDDED_MODEL, config, tmp_path)
    assert passport.tasks["arithmetic"].quantized.exact_match == 0
    assert passport.reasoning is not None
    assert passport.reasoning.closed == dataclasses.replace(passport.reasoning.closed, reference=0.0, quantized=0.0)  # type: ignore[type-var]
    assert passport.reasoning.mean_tokens.quantized == 4


def test_quick_measures_what_budgets_look_at(tmp_path: Path) -> None:
    config = EvalConfig(texts={"ids": TEXT}, task_limit=2, greedy_prompts=2, greedy_tokens=4, speed_tokens=2)
    with open_checkpoint(EMBEDDED_MODEL) as checkpoint:
        reference = Reference.measure(checkpoint, config, tmp_path)
        plain = compare(reference, checkpoint, config, budgets=Gate(max_kl=1), quick=True)
        tasks = compare(reference, checkpoint, config, budgets=Gate(max_task_drop=1), quick=True)
    assert plain.quick
    assert plain.kl is not None
    assert (plain.tasks, plain.layers, plain.greedy, plain.reasoning, plain.decode_tokens_per_s) == ({}, (), None, None, None)
    assert tasks.tasks["arithmetic"].num_items == 2
    assert plain.gate.passed
    assert tasks.gate.passed


def test_errors_of_outputs_that_are_handed_in_are_taken(float_model: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    config = dataclasses.replace(TEXTS_ALONE, layer_tokens=8)
    passport = measured(float_model, float_model, config, tmp_path, layer_outputs={name: 0.125})
    errors = {layer.name: layer for layer in passport.layers}
    assert errors[name].output_error == 0.125
    assert 0.001 < errors["model.layers.1.mlp.up_proj"].output_error < 0.05  # type: ignore[operator]
    assert 0.001 < errors[name].weight_error < 0.05  # type: ignore[operator]


def test_without_a_reference_there_are_figures_and_no_comparison() -> None:
    config = EvalConfig(texts={"ids": TEXT}, task_limit=3, greedy_prompts=2, greedy_tokens=4, speed_tokens=2)
    with open_checkpoint(EMBEDDED_MODEL) as checkpoint:
        passport = measure_alone(checkpoint, config)
    found = json.loads(passport.to_json())
    assert found["reference"] is found["kl"] is found["top1_agreement"] is found["greedy"] is None
    assert found["loss"]["ids"]["reference"] is found["loss"]["ids"]["increase"] is None
    assert found["loss"]["ids"]["quantized"] > 0
    assert found["tasks"]["arithmetic"]["reference"] is None
    assert found["tasks"]["arithmetic"]["quantized"]["num_right"] == 3
    assert found["gate"]["passed"] is True


def test_a_window_in_which_no_answer_fits_is_refused() -> None:
    with open_checkpoint(EMBEDDED_MODEL) as checkpoint, pytest.raises(CalibrationError, match="window_tokens is 4"):
        measure_alone(checkpoint, EvalConfig(window_tokens=4, max_tokens_per_text=8, tasks={}))


def test_nothing_but_measuring_loads_paddle() -> None:
    code = "import sys, paddle_ds_slim.eval_command, paddle_ds_slim.passport.table; sys.exit('paddle' in sys.modules)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == 0


def test_models_of_other_vocabularies_are_refused(float_model: Path, tmp_path: Path) -> None:
    other = random_model(tmp_path / "other", vocab_size=1030)
    with pytest.raises(ConfigMismatchError, match="vocabularies of 1030 and 1024 tokens"):
        measured(float_model, other, TEXTS_ALONE, tmp_path / "scratch")


def test_tokenizers_that_mean_other_texts_by_the_same_ids_are_refused(float_model: Path, tmp_path: Path) -> None:
    other = random_model(tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    one, two = (next(token for token, index in vocab.items() if index == wanted) for wanted in TEXT[0][:2])
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigMismatchError, match="other texts to their tokenizers"):
        measured(float_model, other, TEXTS_ALONE, tmp_path / "scratch")


def test_a_comparison_under_another_configuration_is_refused(float_model: Path, tmp_path: Path) -> None:
    with open_checkpoint(float_model) as checkpoint:
        reference = Reference.measure(checkpoint, TEXTS_ALONE, tmp_path)
        with pytest.raises(ConfigError, match="another configuration"):
            compare(reference, checkpoint, dataclasses.replace(TEXTS_ALONE, seed=1))
        reference.distributions["ids"].write_bytes(b"short")
        with pytest.raises(QuantizationError, match="cannot be read"):
            compare(reference, checkpoint, TEXTS_ALONE)


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    """A directory in which the file of the first text is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "text-0.logp").symlink_to("/dev/full")
    return scratch


def test_a_full_scratch_disk_is_an_error_that_says_how_much_is_needed(float_model: Path, full_disk: Path) -> None:
    with open_checkpoint(float_model) as checkpoint, pytest.raises(QuantizationError, match=f"take {13 * 1024 * 4} bytes"):
        Reference.measure(checkpoint, TEXTS_ALONE, full_disk)


def test_published_losses_of_the_stories_are_found(shared_data: Path, tmp_path: Path) -> None:
    stories = shared_data / "stories260k"
    config = EvalConfig(texts={"stories": stories / "tinystories_sample.txt"}, greedy_prompts=4, greedy_tokens=16, speed_tokens=2)
    passport = measured(
        stories, shared_data / "stories260k-w4a16", config, tmp_path, budgets=Gate(max_kl=0.1, max_ppl_increase=0.01)
    )
    assert passport.data.texts["stories"].count == 1804
    assert passport.loss["stories"].reference == pytest.approx(1.2664, abs=1e-4)
    assert passport.loss["stories"].quantized == pytest.approx(1.3073, abs=1e-3)
    assert (passport.tasks, passport.reasoning) == ({}, None)
    assert not passport.gate.passed
    assert len(passport.gate.complaints) == 1
    dense = {layer.name for layer in passport.layers if layer.scheme == "dense"}
    assert dense == {f"model.layers.{index}.mlp.down_proj" for index in range(5)}
    assert all((layer.weight_error == 0) == (layer.name in dense) for layer in passport.layers)
