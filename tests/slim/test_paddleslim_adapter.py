"""PaddleSlim through the adapter: what each work-around cures, and that the methods do what they are named after."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from checkpoints.makers import LLAMA, config_json, random_tensors, write_hf
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.errors import CalibrationError, QuantizationError, UnsupportedError
from paddle_ds_slim.paddlenlp_model import (
    LINEARS,
    block_linears,
    blocks_of,
    build_block,
    build_model,
    embed,
    load_block,
    state_of,
)
from paddle_ds_slim.paddleslim_adapter import (
    auto_clip,
    fake_quantised,
    folds,
    gptq,
    paddleslim_table,
    shift,
    shipped,
    smooth,
    table,
)

RAW = config_json(LLAMA, num_hidden_layers=2)
IDS = [np.random.default_rng(index).integers(0, 56, 30 + 10 * index) for index in range(4)]
FLOAT16_CASTS = "def update(x):\n    return x.cast('float16') + x.cast('float16')\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, one input channel of which is much larger than the others."""
    tensors = random_tensors(RAW)
    for name, values in tensors.items():
        if "layernorm" in name:
            values[3] *= 30
    return write_hf(tmp_path_factory.mktemp("model"), RAW, tensors)


@pytest.fixture
def model(directory: Path) -> Any:
    with open_checkpoint(directory) as checkpoint:
        return build_model(checkpoint)


def logits(model: Any) -> np.ndarray:
    with paddle.no_grad():
        values: np.ndarray = model(paddle.to_tensor(IDS[0][None]))[0].numpy()
    return values


def first_layer(model: Any) -> dict[str, np.ndarray]:
    return {name: values for name, values in state_of(model).items() if name.startswith("model.layers.0.")}


def linear_inputs(model: Any, name: str) -> np.ndarray:
    """What linear layer ``name`` of the first block reads over all of IDS, float32 [tokens, in]."""
    seen: list[np.ndarray] = []
    hook = block_linears(blocks_of(model)[0])[name].register_forward_pre_hook(lambda layer, x: seen.append(x[0].numpy()[0]))
    for ids in IDS:
        model(paddle.to_tensor(ids[None]))
    hook.remove()
    return np.concatenate(seen)


# ---- shipped source


def test_the_flaws_of_the_installed_version_are_found_and_mended() -> None:
    for name, cure in shipped.CURES.items():
        source = Path(shipped.load(f"paddleslim.quant.advanced.{name}").__file__).read_text(encoding="utf-8")
        tree = shipped.mended(source, name, cure)
        assert ast.dump(tree) != ast.dump(ast.parse(source))
        assert "'float16'" not in ast.unparse(tree)
    assert shipped.version() == shipped.MEASURED_VERSION


def test_source_without_the_flaw_is_left_alone() -> None:
    source = FLOAT16_CASTS.replace("float16", "float32")
    assert ast.dump(shipped.mended(source, "x", shipped.Cure(shipped.Float16ToFloat32, 2))) == ast.dump(ast.parse(source))


def test_source_with_the_flaw_elsewhere_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"smooth of PaddleSlim 2\S+ has 2 places for Float16ToFloat32 and not the 3"):
        shipped.mended(FLOAT16_CASTS, "smooth", shipped.CURES["smooth"])


def test_an_empty_index_is_not_assigned_through() -> None:
    tree = shipped.mended("h[dead, dead] = 1\nw[:, dead] = 0\nq[0] = 2", "gptq", shipped.CURES["gptq"])
    assert ast.unparse(tree).splitlines()[:2] == ["if dead[0].shape[0]:", "    h[dead, dead] = 1"]
    assert ast.unparse(tree).splitlines()[-1] == "q[0] = 2"


def test_without_paddleslim_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise shipped.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(shipped.importlib.metadata, "version", absent)
    with pytest.raises(UnsupportedError, match=r"pip install paddle-ds\[slim\]"):
        shipped.load("paddleslim.quant.observers")


# ---- Smooth, Shift, AutoClip


@pytest.mark.parametrize("search", [None, "piecewise", "awq"])
def test_smoothing_keeps_the_function_and_evens_out_the_channels(model: Any, search: Any) -> None:
    before, weights = logits(model), state_of(model)
    largest = np.abs(linear_inputs(model, "mlp.up_proj")).max(axis=0)
    smooth(model, IDS, search=search)
    np.testing.assert_allclose(logits(model), before, atol=1e-4 * np.abs(before).max())
    after = np.abs(linear_inputs(model, "mlp.up_proj")).max(axis=0)
    assert after.max() / np.median(after) < 0.5 * largest.max() / np.median(largest)
    changed = {name for name, values in state_of(model).items() if not np.array_equal(values, weights[name])}
    assert {"model.layers.1.mlp.gate_proj.weight", "model.layers.0.input_layernorm.weight"} <= changed
    assert not any("o_proj" in name or "down_proj" in name for name in changed)


def test_the_scale_is_the_published_one_of_the_last_linear_behind_a_norm(model: Any) -> None:
    weights, inputs = first_layer(model), linear_inputs(model, "self_attn.v_proj")
    smooth(model, IDS, alpha=0.7)
    value = np.abs(weights["model.layers.0.self_attn.v_proj.weight"]).max(axis=0)
    scale = np.abs(inputs).max(axis=0) ** 0.7 / value**0.3
    ratio = weights["model.layers.0.input_layernorm.weight"] / first_layer(model)["model.layers.0.input_layernorm.weight"]
    np.testing.assert_allclose(ratio, scale, rtol=1e-4)


def test_a_block_alone_is_smoothed_as_in_the_model(model: Any) -> None:
    block = build_block(model.canonical_config, 0)
    load_block(block, first_layer(model))
    smooth(block, [embed(model, ids[None]) for ids in IDS])
    smooth(model, IDS)
    alone, inside = state_of(block), state_of(blocks_of(model)[0])
    assert all(np.allclose(alone[name], inside[name], rtol=1e-5) for name in inside)


def test_searches_see_every_token_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set()

    class Search:
        def search(self, layer: str, sampled: Any, act_abs_max: Any, weight: Any) -> Any:
            shapes.add(tuple(sampled.shape))
            return paddle.ones_like(act_abs_max)

    monkeypatch.setattr(folds, "make_search", lambda name: Search())
    smooth(model, [IDS[0][None].repeat(2, axis=0), *IDS[1:]], search="piecewise")
    assert shapes == {(1, 2 * len(IDS[0]) + sum(map(len, IDS[1:])), 24)}


def test_a_fold_that_changes_the_function_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "_LLAMA_PAIRS", {})  # PaddleSlim's own defaults
    with pytest.raises(QuantizationError, match="Smooth changed the model: outputs differ by"):
        smooth(model, IDS)


def test_a_search_takes_no_alpha(model: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"alpha 0\.3 beside search 'awq'"):
        smooth(model, IDS, alpha=0.3, search="awq")


def test_norms_that_would_be_paired_wrongly_are_refused(model: Any) -> None:
    block = blocks_of(model)[1]
    block.input_layernorm, block.post_attention_layernorm = block.post_attention_layernorm, block.input_layernorm
    with pytest.raises(QuantizationError, match=r"layer 1: PaddleSlim would pair norm .* since its number is odd"):
        shift(model, IDS)


@pytest.mark.parametrize("average", [False, True])
def test_shifting_keeps_the_function_but_fits_no_checkpoint(model: Any, average: bool) -> None:
    before = logits(model)
    shift(model, IDS, average=average)
    np.testing.assert_allclose(logits(model), before, atol=1e-4 * np.abs(before).max())
    assert np.abs(blocks_of(model)[0].self_attn.q_proj.bias.numpy()).max() > 0.01
    with pytest.raises(QuantizationError, match="was wrapped into WOBiasHelpLayer"):
        state_of(model)
    smooth(model, IDS)
    np.testing.assert_allclose(logits(model), before, atol=1e-4 * np.abs(before).max())


def test_clipping_narrows_ranges_and_leaves_no_hooks(model: Any) -> None:
    before = state_of(model)
    auto_clip(model, IDS)  # 64 divides neither 24 nor 40 inputs
    after = state_of(model)
    assert all((np.abs(after[name]) <= np.abs(before[name]) + 1e-6).all() for name in after)
    assert any(np.abs(after[name]).max() < np.abs(before[name]).max() for name in after)
    assert not any(linear._forward_pre_hooks for block in blocks_of(model) for linear in block_linears(block).values())


@pytest.mark.parametrize("method", [smooth, shift, auto_clip, gptq])
@pytest.mark.parametrize("batches", [[], [np.empty((1, 0), np.int64)]], ids=["no batches", "no tokens"])
def test_no_method_runs_without_data(model: Any, method: Callable[..., None], batches: list[np.ndarray]) -> None:
    before = state_of(model)
    with pytest.raises(CalibrationError, match="at least one"):
        method(model, batches)
    assert all(np.array_equal(values, before[name]) for name, values in state_of(model).items())


# ---- GPTQ


@pytest.mark.parametrize(("bits", "group_size", "actorder"), [(8, None, True), (4, None, True), (4, 16, False)])
def test_gptq_rounds_with_less_output_error_than_to_nearest(
    model: Any, bits: int, group_size: int | None, actorder: bool
) -> None:
    name, size = "self_attn.q_proj", group_size or 24
    weight, x = first_layer(model)[f"model.layers.0.{name}.weight"], linear_inputs(model, name)
    gptq(model, IDS, bits=bits, group_size=group_size, actorder=actorder)
    rounded = first_layer(model)[f"model.layers.0.{name}.weight"]
    nearest = table.nearest_groups(weight, size, bits)
    assert np.square(x @ (rounded - weight).T).sum() < np.square(x @ (nearest - weight).T).sum()
    assert all(len(np.unique(row)) <= 2**bits for row in rounded[:, :size])
    assert [type(linear) for linear in block_linears(blocks_of(model)[0]).values()] == [paddle.nn.Linear] * 7


def test_gptq_of_a_block_is_that_of_the_model(model: Any) -> None:
    block = build_block(model.canonical_config, 0)
    load_block(block, first_layer(model))
    gptq(block, [embed(model, ids[None]) for ids in IDS])
    gptq(model, IDS)
    alone, inside = state_of(block), state_of(blocks_of(model)[0])
    assert all(np.array_equal(alone[name], inside[name]) for name in inside)


def test_gptq_takes_a_channel_that_is_always_zero(model: Any) -> None:
    norm = blocks_of(model)[0].input_layernorm.weight
    norm.set_value(np.where(np.arange(24) == 5, 0, norm.numpy()).astype(np.float32))
    gptq(model, IDS)
    assert not first_layer(model)["model.layers.0.self_attn.q_proj.weight"][:, 5].any()


def test_gptq_that_fails_names_the_layer_and_unwraps_it(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, **options: Any) -> None:
        raise OSError("\n(External) no Cholesky factor\n")

    monkeypatch.setattr(shipped.advanced("gptq").GPTQ, "fasterquant", fail)
    with pytest.raises(QuantizationError, match=r"GPTQ of layer 0 self_attn\.q_proj failed: .*no Cholesky"):
        gptq(model, IDS)
    assert [type(linear) for linear in block_linears(blocks_of(model)[0]).values()] == [paddle.nn.Linear] * 7


def test_gptq_warns_of_fewer_tokens_than_inputs(
    model: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("paddle_ds_slim"), "propagate", True)  # a command may have turned it off
    gptq(model, [IDS[0][:30]])
    assert "gptq.few_tokens" in caplog.text


@pytest.mark.parametrize("options", [{"bits": 3}, {"group_size": 0}])
def test_gptq_refuses_formats_that_it_does_not_have(model: Any, options: dict[str, int]) -> None:
    with pytest.raises(UnsupportedError, match="have: 4 or 8 bits"):
        gptq(model, IDS, **options)


# ---- the table


def test_fake_quantisation_rounds_both_sides_and_is_undone(model: Any) -> None:
    before, weights = logits(model), state_of(model)
    linear, x = block_linears(blocks_of(model)[0])["mlp.up_proj"], np.linspace(-1, 2, 24, dtype=np.float32)[None]
    with fake_quantised(model, table.nearest_rows, activations=True):
        rounded = linear(paddle.to_tensor(x)).numpy()
        assert not np.array_equal(logits(model), before)
    step = np.float32(2) / 127
    expected = np.rint(x / step) * step @ table.nearest_rows(weights["model.layers.0.mlp.up_proj.weight"]).T
    np.testing.assert_allclose(rounded, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(logits(model), before)


def test_four_bits_in_groups_have_a_short_last_group() -> None:
    weight = np.array([[7, 3.4, 0.1, 0.2, -14, 0]], np.float32)
    assert np.array_equal(table.nearest_groups(weight, 4), [[7, 3, 0, 0, -14, 0]])
    assert not table.nearest_groups(np.zeros((2, 5), np.float32), 2).any()


def test_the_table_has_a_row_for_each_method_and_for_each_failure(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(directory) as checkpoint:
        plain = build_model(checkpoint)
        reference = logits(plain)

        def evaluate(model: Any) -> dict[str, float]:
            return {"difference": float(np.abs(logits(model) - reference).max())}

        def fail(model: Any, batches: Any) -> None:
            raise RuntimeError("first line\nlast line")

        monkeypatch.setattr(table, "shift", fail)
        rows = {row.name.removeprefix("PaddleSlim "): row for row in paddleslim_table(checkpoint, IDS, evaluate, group_size=8)}
    assert len(rows) == 8
    assert rows["round to nearest"].fp32 == {"difference": 0.0}
    assert rows["Shift"].error == rows["Shift + Smooth"].error == "RuntimeError: last line"
    for name in ("round to nearest", "Smooth", "Smooth + PieceWiseSearch", "AutoClip"):
        row = rows[name]
        assert row.error is None
        assert row.fp32 and row.w8a8 and row.w4  # noqa: PT018
        assert row.fp32["difference"] < row.w4["difference"]
        assert row.w8a8["difference"] < row.w4["difference"]
    assert rows["Smooth"].w8a8["difference"] < rows["round to nearest"].w8a8["difference"]  # type: ignore[index]
    assert rows["GPTQ int8"].w8a8 and rows["GPTQ int8"].fp32 is None  # noqa: PT018
    assert rows["GPTQ int4 g8"].w4 and rows["GPTQ int4 g8"].w8a8 is None  # noqa: PT018


def test_all_linears_are_known_by_name(model: Any) -> None:
    assert tuple(block_linears(blocks_of(model)[0])) == LINEARS
