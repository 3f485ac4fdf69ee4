"""Errors of layers: of rounding alone, whatever was moved between neighbours before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from checkpoints import makers
from engine.parity import all_logits, make_runner
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.base import DenseTensor, GroupedWeight
from paddle_ds.checkpoints.rounding import quantize_rows
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.recipe import Recipe
from paddle_ds.config.tensors import model_specs
from paddle_ds.kernels.int8_linear import reference as int8_linear
from paddle_ds_slim.passport.activations import keep_inputs
from paddle_ds_slim.passport.data import Piece
from paddle_ds_slim.passport.folds import Factors, weight_error
from paddle_ds_slim.passport.layers import layer_errors
from paddle_ds_slim.passport.record import LayerError

IDS = list(range(1, 33))
BIASED = {"attention_bias": True}
FLOAT = Recipe("none")
W8A8 = Recipe("w8a8")


def quiet(name: str, done: int, total: int) -> None:
    assert done <= total


def write(directory: Path, config: dict[str, Any], tensors: makers.Tensors) -> Path:
    return makers.write_hf(directory, config, tensors)


def errors_of(reference: Path, other: Path, recipe: Recipe, inputs: dict[str, Path]) -> dict[str, LayerError]:
    with open_checkpoint(reference) as one, open_checkpoint(other) as two:
        return {error.name: error for error in layer_errors(one, two, recipe, inputs, None, quiet)}


def inputs_of(model: Path, scratch: Path) -> dict[str, Path]:
    runner = make_runner(model)
    return keep_inputs(runner, (Piece(tuple(IDS)),), len(IDS), scratch)


def fold(config: ModelConfig, tensors: makers.Tensors, with_shift: bool = False) -> makers.Tensors:
    """The same function with random factors (and a shift of the output projection's inputs) moved between all neighbours."""
    random = np.random.default_rng(3)
    moved = {name: values.copy() for name, values in tensors.items()}

    def factors(size: int) -> np.ndarray:
        return np.exp(random.normal(0, 1.5, size)).astype(np.float32)

    for index in range(config.num_layers):
        at = f"model.layers.{index}."
        for norm, readers in (("input_layernorm", "qkv"), ("post_attention_layernorm", ("gate", "up"))):
            s = factors(config.hidden_size)
            moved[f"{at}{norm}.weight"] /= s
            part = "self_attn" if norm.startswith("input") else "mlp"
            for reader in readers:
                moved[f"{at}{part}.{reader}_proj.weight"] *= s
        s = factors(config.intermediate_size)
        moved[f"{at}mlp.up_proj.weight"] /= s[:, None]
        moved[f"{at}mlp.down_proj.weight"] *= s
        s, wide = factors(config.kv_size), config.num_heads // config.num_kv_heads
        repeated = np.repeat(s.reshape(config.num_kv_heads, -1), wide, axis=0).reshape(-1)
        if with_shift:
            z = random.normal(0, 1, config.kv_size).astype(np.float32)
            wide_z = np.repeat(z.reshape(config.num_kv_heads, -1), wide, axis=0).reshape(-1)
            moved[f"{at}self_attn.v_proj.bias"] -= z
            moved[f"{at}self_attn.o_proj.bias"] += moved[f"{at}self_attn.o_proj.weight"] @ wide_z
        moved[f"{at}self_attn.v_proj.weight"] /= s[:, None]
        if f"{at}self_attn.v_proj.bias" in moved:
            moved[f"{at}self_attn.v_proj.bias"] /= s
        moved[f"{at}self_attn.o_proj.weight"] *= repeated
    s = factors(config.hidden_size)
    moved["model.norm.weight"] /= s
    moved["lm_head.weight"] *= s
    return moved


@pytest.fixture(scope="module", params=["qwen2", "llama-with-biases"])
def folded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model, and the same function with factors moved; the Llama also with a shift."""
    directory = tmp_path_factory.mktemp("folded")
    config = makers.config_json() if request.param == "qwen2" else makers.config_json(makers.LLAMA, **BIASED)
    tensors = makers.random_tensors(config)
    moved = fold(ModelConfig.from_dict(config), tensors, with_shift=request.param != "qwen2")
    return write(directory / "model", config, tensors), write(directory / "moved", config, moved)


def test_what_was_moved_between_neighbours_is_no_error(folded: tuple[Path, Path], tmp_path: Path) -> None:
    model, moved = folded
    logits = all_logits(make_runner(model), IDS)
    assert (
        np.abs(all_logits(make_runner(moved), IDS) - logits).max() < 1e-3 * np.abs(logits).max()
    )  # the test's own fold is right
    errors = errors_of(model, moved, FLOAT, inputs_of(model, tmp_path))
    assert len(errors) == 2 * 7 + 1
    assert max(error.weight_error or 0 for error in errors.values()) < 1e-5
    assert max(error.output_error or 0 for error in errors.values()) < 1e-4


def test_an_error_beside_what_was_moved_is_found(folded: tuple[Path, Path], tmp_path: Path) -> None:
    model, moved = folded
    name = "model.layers.1.mlp.down_proj"
    with open_checkpoint(moved) as checkpoint:
        config = checkpoint.raw_config()
        tensors = {spec.name: checkpoint.read(spec).to_float32().copy() for spec in model_specs(checkpoint.config)}
    tensors[f"{name}.weight"] *= np.float32(1.1)
    errors = errors_of(model, write(tmp_path / "wrong", config, tensors), FLOAT, inputs_of(model, tmp_path))
    assert errors[name].weight_error == pytest.approx(0.1, rel=1e-3)
    assert errors[name].output_error == pytest.approx(0.1, rel=1e-3)
    assert max(error.weight_error or 0 for other, error in errors.items() if other != name) < 1e-5


def test_errors_of_rounding_are_those_of_the_operator_that_runs(tmp_path: Path) -> None:
    config = makers.config_json()
    model = write(tmp_path / "model", config, makers.random_tensors(config))
    inputs = inputs_of(model, tmp_path)
    errors = errors_of(model, model, W8A8, inputs)
    with open_checkpoint(model) as checkpoint:
        for spec in model_specs(checkpoint.config):
            name = spec.name.removesuffix(".weight")
            if name not in errors:
                continue
            exact = checkpoint.read(spec).to_float32()
            found = quantize_rows(exact)
            difference = np.linalg.norm(found.to_float32() - exact) / np.linalg.norm(exact)
            assert errors[name].weight_error == pytest.approx(difference, rel=1e-4)
            x = np.load(inputs[name])
            assert x.shape == (len(IDS), spec.shape[1])
            operands = (paddle.to_tensor(values) for values in (x, found.values, found.scales))
            y, given = x @ exact.T, int8_linear(*operands, None).numpy()
            assert errors[name].output_error == pytest.approx(np.linalg.norm(given - y) / np.linalg.norm(y), rel=1e-3)
            assert errors[name].scheme == "w8a8"
    assert len(errors) == 2 * 7 + 1


def test_layers_that_read_the_same_share_a_file_and_the_decoder_is_as_before(tmp_path: Path) -> None:
    config = makers.config_json()
    runner = make_runner(write(tmp_path / "model", config, makers.random_tensors(config)))
    before = [*runner.decoder.layers[0].linears(), runner.decoder.head]
    files = keep_inputs(runner, (Piece((1, 2, 3)), Piece((4, 5, 6))), 5, tmp_path)
    assert all(
        one is other for one, other in zip(before, [*runner.decoder.layers[0].linears(), runner.decoder.head], strict=True)
    )
    assert files["model.layers.1.self_attn.q_proj"] == files["model.layers.1.self_attn.v_proj"]
    assert len(set(files.values())) == 2 * 4 + 1
    assert all(np.load(file).shape[0] == 5 for file in files.values())


@pytest.mark.parametrize(("recipe", "has_head"), [(FLOAT, False), (W8A8, True)], ids=["float", "w8a8"])
def test_a_tied_head_is_a_layer_where_it_is_quantised(tmp_path: Path, recipe: Recipe, has_head: bool) -> None:
    config = makers.config_json(tie_word_embeddings=True)
    model = write(tmp_path / "model", config, makers.random_tensors(config))
    assert ("lm_head" in errors_of(model, model, recipe, {})) == has_head


def test_models_of_other_shapes_have_no_layers_to_compare(tmp_path: Path) -> None:
    small, large = makers.config_json(), makers.config_json(intermediate_size=48)
    one, other = (write(tmp_path / str(i), c, makers.random_tensors(c)) for i, c in enumerate((small, large)))
    assert errors_of(one, other, FLOAT, {}) == {}


def test_groups_are_compared_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    exact = random.normal(0, 1, (10, 12)).astype(np.float32)
    values = random.integers(-8, 8, (10, 12)).astype(np.int8)
    scales, zeros = random.uniform(0.1, 0.3, (10, 3)).astype(np.float32), random.integers(-2, 3, (10, 3)).astype(np.int16)
    order = random.permutation(np.arange(12) // 4).astype(np.int32)
    nothing = Factors(np.ones(12, np.float32), np.ones(10, np.float32))
    monkeypatch.setattr("paddle_ds_slim.passport.folds._BLOCK_ELEMENTS", 3 * 12)
    for group_index, zero_points in ((None, None), (order, zeros)):
        found = GroupedWeight(values, scales, zero_points, group_index, 4, 4)
        wanted = np.linalg.norm(found.to_float32() - exact) / np.linalg.norm(exact)
        assert weight_error(DenseTensor(exact, "float32"), found, nothing) == pytest.approx(wanted, rel=1e-5)


def test_a_layer_of_zeros_has_no_error_where_zeros_came_out() -> None:
    nothing = Factors(np.ones(4, np.float32), np.ones(3, np.float32))
    zeros, ones = (DenseTensor(np.full((3, 4), value, np.float32), "float32") for value in (0, 1))
    assert weight_error(zeros, zeros, nothing) == 0
    assert weight_error(zeros, ones, nothing) == float("inf")
