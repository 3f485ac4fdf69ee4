"""PaddleNLP's forward pass with our weights and rotary tables against the engine's float path, whole and block by block."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from engine.parity import all_logits, make_runner
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import layer_specs, model_specs
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import QuantizationError, UnsupportedError
from paddle_ds_slim.paddlenlp_model import (
    LINEARS,
    block_linears,
    blocks_of,
    build_block,
    build_model,
    embed,
    load_block,
    run_block,
    state_of,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
CASES = sorted(path.name for path in GOLDEN.iterdir())


def build(case: str) -> tuple[Any, ModelConfig]:
    with open_checkpoint(GOLDEN / case) as checkpoint:
        return build_model(checkpoint), checkpoint.config


def prompt(case: str) -> np.ndarray:
    return np.load(GOLDEN / case / "golden.npz")["prompt_ids"][None].astype(np.int64)


def layer_of(tensors: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    return {name: values for name, values in tensors.items() if name.startswith(f"model.layers.{index}.")}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_engines_and_blocks_one_by_one_are_the_whole(case: str) -> None:
    model, config = build(case)
    ids = prompt(case)
    logits = model(paddle.to_tensor(ids))[0].numpy()[0]
    ours = all_logits(make_runner(GOLDEN / case), ids[0].tolist())
    assert np.abs(logits - ours).max() <= 1e-5 * np.abs(ours).max()
    tensors, block, hidden = state_of(model), build_block(config, 0), embed(model, ids)
    for index in range(config.num_layers):
        load_block(block, layer_of(tensors, index))
        hidden = run_block(block, hidden)
    rest = model.lm_head(model.get_decoder().norm(paddle.to_tensor(hidden))).numpy()[0]
    assert np.abs(rest - logits).max() <= 1e-5 * np.abs(ours).max()


def test_right_padding_changes_nothing_before_it() -> None:
    model, _ = build("llama-gqa-untied")
    ids = prompt("llama-gqa-untied")
    padded = np.concatenate([ids, np.zeros_like(ids)], axis=1)
    longer = model(paddle.to_tensor(np.repeat(padded, 2, axis=0)))[0].numpy()[1, : ids.shape[1]]
    np.testing.assert_allclose(longer, model(paddle.to_tensor(ids))[0].numpy()[0], atol=1e-5)


@pytest.mark.parametrize("case", ["llama-biases", "llama-tied", "llama-head-dim", "qwen2-bf16-sharded"])
def test_what_goes_in_comes_back(case: str) -> None:
    model, config = build(case)
    with open_checkpoint(GOLDEN / case) as checkpoint:
        stored = {spec.name: checkpoint.read(spec).to_float32() for spec in model_specs(config)}
    state = state_of(model)
    assert list(state) == list(stored)
    assert all(np.array_equal(state[name], stored[name]) for name in stored)
    assert all(list(state_of(block)) == list(layer_of(stored, index)) for index, block in enumerate(blocks_of(model)))


def test_int8_weights_are_dequantised() -> None:
    with open_checkpoint(EMBEDDED_MODEL) as checkpoint:
        state = state_of(build_model(checkpoint))
        for spec in model_specs(checkpoint.config):
            assert np.array_equal(state[spec.name], checkpoint.read(spec).to_float32())


def test_a_block_takes_and_loses_a_bias_that_its_config_does_not_imply() -> None:
    model, config = build("llama-gqa-untied")
    tensors, block = layer_of(state_of(model), 1), build_block(config, 1)
    hidden = embed(model, prompt("llama-gqa-untied"))
    load_block(block, tensors)
    plain = run_block(block, hidden)
    bias = np.linspace(-1, 1, config.hidden_size, dtype=np.float32)
    load_block(block, tensors | {"model.layers.1.mlp.down_proj.bias": bias})
    np.testing.assert_allclose(run_block(block, hidden), plain + bias, atol=1e-5)
    assert np.array_equal(state_of(block)["model.layers.1.mlp.down_proj.bias"], bias)
    load_block(block, tensors)
    assert np.array_equal(run_block(block, hidden), plain)


def test_tensors_that_are_not_those_of_one_layer_are_refused() -> None:
    model, config = build("llama-tied")
    tensors, block = state_of(model), build_block(config, 0)
    layer = layer_of(tensors, 0)
    with pytest.raises(ValueError, match="tensors of 2 layers"):
        load_block(block, layer | layer_of(tensors, 1))
    with pytest.raises(ValueError, match="unknown"):
        load_block(block, layer | {"model.layers.0.input_layernorm.bias": np.zeros(config.hidden_size, np.float32)})
    with pytest.raises(ValueError, match=r"absent \['model\.layers\.0\.self_attn\.q_proj\.weight'\]"):
        load_block(block, {name: values for name, values in layer.items() if "q_proj" not in name})
    gate = "model.layers.0.mlp.gate_proj.weight"
    with pytest.raises(ValueError, match="has shape"):
        load_block(block, layer | {gate: layer[gate].T})


def test_linears_are_named_as_the_config_names_them() -> None:
    config = build("llama-biases")[1]
    block = build_block(config, 1)
    weights = [spec.name for spec in layer_specs(config, 1) if "proj.weight" in spec.name]
    assert [f"model.layers.1.{name}.weight" for name in LINEARS] == weights
    assert [type(linear) for linear in block_linears(block).values()] == [paddle.nn.Linear] * 7


def test_every_model_has_names_from_zero_and_draws_no_random_numbers() -> None:
    paddle.seed(7)
    expected = float(paddle.rand([1]))
    paddle.seed(7)
    models = [build("llama-mha")[0] for _ in range(2)]
    assert float(paddle.rand([1])) == expected
    for model in models:
        block = blocks_of(model)[0]
        assert block.self_attn.q_proj.full_name() == "linear_0"
        assert block.input_layernorm.full_name().endswith("_norm_0")


def test_a_wrapped_layer_is_not_written_as_a_plain_weight() -> None:
    class Wrapper(paddle.nn.Layer):  # type: ignore[misc]
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer, self.weight = layer, layer.weight

    block = build_block(build("llama-mha")[1], 0)
    block.input_layernorm = Wrapper(block.input_layernorm)
    with pytest.raises(QuantizationError, match=r"layers\.0\.input_layernorm was wrapped into Wrapper"):
        state_of(block)


def test_an_architecture_without_a_model_is_refused() -> None:
    config = dataclasses.replace(build("llama-mha")[1], architecture="MambaForCausalLM")
    with pytest.raises(UnsupportedError, match="MambaForCausalLM"):
        build_block(config, 0)


def test_the_models_directory_stays_as_it_was(tmp_path: Path) -> None:
    directory = shutil.copytree(GOLDEN / "llama-tied", tmp_path / "model")
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    with open_checkpoint(directory) as checkpoint:
        build_model(checkpoint)
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before
