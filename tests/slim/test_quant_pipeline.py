"""Layer by layer: what comes out, what resumes, what stops it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from planted import plant_outliers

from checkpoints import makers
from engine.parity import all_logits, make_runner
from paddle_ds.checkpoints import Checkpoint, open_checkpoint
from paddle_ds.checkpoints.native import write_native
from paddle_ds.config.recipe import Recipe
from paddle_ds.config.tensors import Role, model_specs
from paddle_ds.devices.cpu import CpuDevice
from paddle_ds.errors import CheckpointError, QuantizationError
from paddle_ds.kernels.registry import choose
from paddle_ds.runtime.loader import load_decoder
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.runtime.sampler import Sampler
from paddle_ds_slim import work_directory
from paddle_ds_slim.pipeline import formats_for, quantize_layers
from paddle_ds_slim.progress import silent
from paddle_ds_slim.recipe import QuantRecipe, Weights, load_recipe
from paddle_ds_slim.result import QuantizedCheckpoint
from paddle_ds_slim.work_directory import WorkDirectory

IDS = [np.random.default_rng(seed).integers(0, 56, 40).astype(np.int64) for seed in range(4)]
RECIPES = ["w8a8-rtn", "w8a8-smooth", "w8a8-shift-smooth", "w8a8-autoclip", "w8a8-gptq", "w8a16-rtn", "w4a16-gptq", "w4a16-awq"]


@pytest.fixture(params=["llama", "qwen2"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    architecture = {"llama": makers.LLAMA, "qwen2": makers.QWEN2}[request.param]
    config = makers.config_json(architecture, num_hidden_layers=3, tie_word_embeddings=request.param == "llama")
    return makers.write_hf(tmp_path / "source", config, makers.random_tensors(config))


def run(source: Checkpoint, recipe: QuantRecipe, work: Path, progress: Any = silent) -> QuantizedCheckpoint:
    return quantize_layers(source, recipe, WorkDirectory.open(work, {}), IDS, progress)


def everything(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {spec.name: checkpoint.read(spec).to_float32().copy() for spec in model_specs(checkpoint.config)}


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_is_what_was_quantised_and_loads(source: Path, tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name)
    with open_checkpoint(source) as float_model:
        result = run(float_model, recipe, tmp_path / "work")
        write_native(result, tmp_path / "out")
        with open_checkpoint(tmp_path / "out") as written:
            assert written.format == "compressed-tensors"
            assert dict(written.schemes()) == {
                name: form.scheme for name, form in formats_for(recipe, float_model.config).items() if form.scheme != "dense"
            }
            expected = everything(result)
            for name, values in everything(written).items():
                assert (values == expected[name]).all(), name
    ids = IDS[0].tolist()
    wanted, found = all_logits(make_runner(source), ids), all_logits(make_runner(tmp_path / "out", quant="auto"), ids)
    bound = 0.35 if recipe.name.startswith("w4") else 0.05
    assert np.linalg.norm(found - wanted) < bound * np.linalg.norm(wanted)


def test_a_shift_makes_a_llama_of_a_qwen2_that_computes_the_same(tmp_path: Path) -> None:
    config = makers.config_json(makers.QWEN2)
    source = makers.write_hf(tmp_path / "source", config, makers.random_tensors(config))
    with open_checkpoint(source) as float_model:
        view = run(float_model, load_recipe("w8a8-shift-smooth"), tmp_path / "work").float_view()
        assert view.config.architecture == "LlamaForCausalLM"
        write_native(view, tmp_path / "out")
    wanted, found = (all_logits(make_runner(path), IDS[0].tolist()) for path in (source, tmp_path / "out"))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


class Stop(Exception):
    """The user's Ctrl-C, or the power."""


def stop_at(layer: int) -> Callable[..., None]:
    def progress(stage: str, item: str, done: int, total: int) -> None:
        if stage == "layers" and done == layer:
            raise Stop

    return progress


@pytest.mark.parametrize("name", ["w8a8-gptq", "w4a16-awq"])
def test_an_interrupted_run_goes_on_at_the_layer_where_it_was(source: Path, tmp_path: Path, name: str) -> None:
    recipe, seen = load_recipe(name), []
    with open_checkpoint(source) as float_model:
        whole = everything(run(float_model, recipe, tmp_path / "whole"))
        with pytest.raises(Stop):
            run(float_model, recipe, tmp_path / "work", stop_at(2))
        resumed = run(float_model, recipe, tmp_path / "work", lambda stage, item, done, total: seen.append(item))
        assert seen == ["layer 2", ""]
        for tensor, values in everything(resumed).items():
            assert (values == whole[tensor]).all(), tensor


def test_work_of_another_recipe_is_not_gone_on_with(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = WorkDirectory.open(tmp_path / "work", {"recipe": "one"})
    work.save("layer-00000", {"a": np.zeros(3, np.float32)}, {})
    assert WorkDirectory.open(tmp_path / "work", {"recipe": "one"}).has("layer-00000")
    assert not WorkDirectory.open(tmp_path / "work", {"recipe": "two"}).has("layer-00000")
    assert "quantize.restart" in caplog.text


def test_what_is_no_work_of_ours_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    with pytest.raises(QuantizationError, match="there is something else"):
        WorkDirectory.open(tmp_path / "photos", {})
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    one, other = WorkDirectory(tmp_path / "work"), WorkDirectory(tmp_path / "work")
    with one.locked(), pytest.raises(QuantizationError, match="another run is at work there"), other.locked():
        raise AssertionError
    with WorkDirectory(tmp_path / "work").locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_observer_looks_at_weights_as_they_are_rounded(tmp_path: Path) -> None:
    """After folding: scales of the weights before it would be off by the factors that were folded."""
    config = makers.config_json(makers.LLAMA)
    plain = makers.write_hf(tmp_path / "plain", config, makers.random_tensors(config))
    recipe = load_recipe("w8a8-smooth")
    observed = msgspec.structs.replace(recipe, weights=Weights(observer="mse"))
    with open_checkpoint(plant_outliers(plain, tmp_path / "planted")) as float_model:
        largest = run(float_model, recipe, tmp_path / "absmax").output_errors()
        searched = run(float_model, observed, tmp_path / "mse").output_errors()
    assert max(searched.values()) < 1.5 * max(largest.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_head_left_dense_is_written_in_a_type_that_holds_it(tmp_path: Path, dtype: str) -> None:
    config = makers.config_json(makers.LLAMA)
    source = makers.write_hf(tmp_path / "source", config, makers.random_tensors(config), dtype)
    with open_checkpoint(source) as float_model:
        result = run(float_model, load_recipe("w8a8-rtn"), tmp_path / "work")
        result.overrides["lm_head"] = "dense"
        write_native(result, tmp_path / "out")
        with open_checkpoint(tmp_path / "out") as written:
            assert (everything(written)["lm_head.weight"] == everything(float_model)["lm_head.weight"]).all()
        write_native(result.float_view(), tmp_path / "view")


def test_a_full_disk_is_said_and_finished_layers_stay(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = work_directory.save_file, []

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        written.append(path)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(work_directory, "save_file", save_file)
    with open_checkpoint(source) as float_model:
        with pytest.raises(QuantizationError, match=r"No space left on device; what is finished is kept"):
            run(float_model, load_recipe("w8a8-rtn"), tmp_path / "work")
        result = run(float_model, load_recipe("w8a8-rtn"), tmp_path / "work")
        assert len(everything(result)) == len(list(model_specs(float_model.config)))


def test_a_damaged_work_file_is_named(source: Path, tmp_path: Path) -> None:
    with open_checkpoint(source) as float_model:
        result = run(float_model, load_recipe("w8a8-rtn"), tmp_path / "work")
        (tmp_path / "work" / "layer-00001.safetensors").write_bytes(b"\x08\0\0\0")
        with pytest.raises(QuantizationError, match=r"layer-00001.safetensors: cannot be read.*remove .*work to start anew"):
            everything(result)


def test_smoothing_saves_a_model_with_outliers(tmp_path: Path) -> None:
    config = makers.config_json(makers.LLAMA)
    plain = makers.write_hf(tmp_path / "plain", config, makers.random_tensors(config))
    source = plant_outliers(plain, tmp_path / "planted")
    with open_checkpoint(source) as float_model:
        nearest = run(float_model, load_recipe("w8a8-rtn"), tmp_path / "rtn").output_errors()
        smoothed = run(float_model, load_recipe("w8a8-smooth"), tmp_path / "smooth").output_errors()
    for layer in ("self_attn.q_proj", "mlp.gate_proj"):
        assert smoothed[f"model.layers.0.{layer}"] < 0.2 * nearest[f"model.layers.0.{layer}"]


def test_layers_can_be_moved_to_a_higher_precision_before_writing(source: Path, tmp_path: Path) -> None:
    moved = {"model.layers.0.mlp.down_proj": "w8a16", "model.layers.1.self_attn.o_proj": "dense"}
    with open_checkpoint(source) as float_model:
        result = run(float_model, load_recipe("w4a16-gptq"), tmp_path / "work")
        before = result.output_errors()
        result.overrides |= moved  # type: ignore[arg-type]
        write_native(result, tmp_path / "out")
        after, original = result.output_errors(), everything(float_model)
        with open_checkpoint(tmp_path / "out") as written:
            schemes, values = written.schemes(), everything(written)
    assert schemes["model.layers.0.mlp.down_proj"] == "w8a16"
    assert "model.layers.1.self_attn.o_proj" not in schemes
    assert (values["model.layers.1.self_attn.o_proj.weight"] == original["model.layers.1.self_attn.o_proj.weight"]).all()
    assert after["model.layers.0.mlp.down_proj"] < 0.3 * before["model.layers.0.mlp.down_proj"]
    assert after["model.layers.1.self_attn.o_proj"] == 0


@pytest.mark.parametrize("overlay", ["kv8-static", "kv8-dynamic"])
def test_the_cache_of_the_recipe_is_in_the_checkpoint(source: Path, tmp_path: Path, overlay: str) -> None:
    with open_checkpoint(source) as float_model:
        write_native(run(float_model, load_recipe(f"w8a8-rtn+{overlay}"), tmp_path / "work"), tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as written:
        kv_cache = written.kv_cache()
        assert kv_cache is not None
        assert (kv_cache.scales is None) == (overlay == "kv8-dynamic")
        for layer in kv_cache.scales or ():
            assert layer.key.shape == layer.value.shape == (written.config.num_kv_heads,)
            assert (layer.key > 0).all()


def test_static_scales_hold_the_largest_key_of_the_calibration_text(tmp_path: Path) -> None:
    """A head's scale times 127 is what its keys reach after rotary, seen from the engine's own float path."""
    config = makers.config_json(makers.LLAMA, num_hidden_layers=1)
    source = makers.write_hf(tmp_path / "source", config, makers.random_tensors(config))
    with open_checkpoint(source) as float_model:
        kv_cache = run(float_model, load_recipe("w8a16-rtn+kv8-static"), tmp_path / "work").kv_cache()
    assert kv_cache is not None
    assert kv_cache.scales is not None
    runner = reference_runner(source)
    largest = np.zeros(2)
    for ids in IDS:
        all_logits(runner, ids.tolist())
        keys = runner._cache.keys[0].numpy()[: len(ids)]  # float32 [tokens, kv heads, head_dim] in the reference's layout
        largest = np.maximum(largest, np.abs(keys).max(axis=(0, 2)))
    assert np.allclose(kv_cache.scales[0].key * 127, largest, rtol=1e-4)


def reference_runner(path: Path) -> ModelRunner:
    with open_checkpoint(path) as checkpoint:
        decoder = load_decoder(checkpoint, Recipe("none"), choose(CpuDevice(), only="reference"))
    return ModelRunner(decoder, Sampler(decoder.config.vocab_size), num_blocks=8, block_tokens=16)


def test_a_source_that_overflows_is_named(tmp_path: Path) -> None:
    config = makers.config_json(makers.LLAMA)
    tensors = makers.random_tensors(config)
    tensors["model.layers.1.mlp.down_proj.weight"][:] = 3e38
    source = makers.write_hf(tmp_path / "source", config, tensors)
    with open_checkpoint(source) as float_model, pytest.raises(QuantizationError, match="overflows float32"):
        run(float_model, load_recipe("w8a8-smooth"), tmp_path / "work")


def test_the_destination_may_not_be_there(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with open_checkpoint(source) as float_model:
        result = run(float_model, load_recipe("w8a8-rtn"), tmp_path / "work")
        with pytest.raises(CheckpointError, match="already there"):
            write_native(result, tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_norms_and_biases_stay_float(source: Path, tmp_path: Path) -> None:
    with open_checkpoint(source) as float_model:
        stored = run(float_model, load_recipe("w8a8-smooth"), tmp_path / "work").stored()
    for spec in model_specs(open_checkpoint(source).config):
        if spec.role in (Role.NORM, Role.BIAS, Role.EMBEDDING):
            assert stored[spec.name].dtype == "float32"
