"""``convert``: every pair of formats, and what each promises."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import makers
from paddle_ds.checkpoints import Checkpoint, DenseTensor, GroupedWeight, Int8Weight, Weight, open_checkpoint
from paddle_ds.config.tensors import Role, TensorSpec, model_specs
from paddle_ds.errors import QuantizationError
from paddle_ds_slim.convert import REPORT_FILE, convert
from paddle_ds_slim.exporters import FORMATS
from slim.conversion_sources import GROUP, MODELS, SOURCES, Dense, Quantised, Truth, model_config

FLOATS = {"float", "paddlenlp", "gguf-f16"}
PER_CHANNEL = {"paddlenlp-int8", "w8a8", "w8a16", "w4a16", "gptq-int8"}
#: sources that quantise a head, or say nothing that keeps ``native`` from doing it
ROUNDS_HEAD = FLOATS | {"paddlenlp-int8"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Truth]]:
    """Directory and truth of a source, made once for all its targets."""

    @functools.cache
    def make(source: str, model: str) -> tuple[Path, Truth]:
        directory = tmp_path_factory.mktemp("sources") / source
        config = model_config(model)
        return directory, SOURCES[source](directory, config, makers.random_tensors(config))

    return make


def integers_of(weight: Weight) -> np.ndarray:
    integers = weight.values.astype(np.int32)
    if isinstance(weight, GroupedWeight) and weight.zero_points is not None:
        integers -= weight.zero_points[:, weight.groups()]
    return integers


def assert_exact(weight: Weight, truth: Quantised | Dense) -> None:
    np.testing.assert_array_equal(weight.to_float32(), truth.values)
    assert isinstance(weight, DenseTensor) is isinstance(truth, Dense)
    if isinstance(truth, Quantised):
        np.testing.assert_array_equal(integers_of(weight), truth.integers)


def assert_same_integers(weight: Weight, truth: Quantised | Dense) -> None:
    """Integers bit for bit; the scales rounded to float16, which keeps 11 bits."""
    assert isinstance(truth, Quantised)
    np.testing.assert_array_equal(integers_of(weight), truth.integers)
    np.testing.assert_allclose(weight.to_float32(), truth.values, rtol=2**-11, atol=0)


def assert_float(dtype: str) -> Callable[[Weight, Quantised | Dense], None]:
    def check(weight: Weight, truth: Quantised | Dense) -> None:
        assert isinstance(weight, DenseTensor)
        assert weight.dtype == dtype
        np.testing.assert_array_equal(weight.to_float32(), truth.values.astype(dtype).astype(np.float32))

    return check


def assert_nearest(weight: Weight, truth: Quantised | Dense) -> None:
    """Within half a step of the channel's scale, and what 16 bits of scale cost."""
    assert isinstance(weight, Int8Weight)
    assert np.abs(weight.values.astype(np.int32)).max() == 127
    step = np.abs(truth.values).max(axis=1, keepdims=True) / 127
    assert (np.abs(weight.to_float32() - truth.values) <= 0.501 * step + np.abs(truth.values) * 2**-10).all()


def assert_nearest_block(weight: Weight, truth: Quantised | Dense) -> None:
    assert isinstance(weight, GroupedWeight)
    blocks = np.abs(truth.values).reshape(truth.values.shape[0], -1, GROUP).max(axis=2)
    step = np.repeat(blocks / 127, GROUP, axis=1)
    assert (np.abs(weight.to_float32() - truth.values) <= 0.501 * step + np.abs(truth.values) * 2**-10).all()


def promise(source: str, target: str, spec: TensorSpec) -> Callable[[Weight, Quantised | Dense], None]:
    """What a tensor of a source must be after conversion."""
    if target == "float":
        return assert_float("float32")
    is_matrix = spec.role in (Role.LINEAR, Role.HEAD, Role.EMBEDDING)
    if target == "gguf-f16":
        return assert_float("float16" if is_matrix else "float32")
    if target == "native":
        is_rounded = source in FLOATS if spec.role is Role.LINEAR else source in ROUNDS_HEAD
        return assert_nearest if spec.role in (Role.LINEAR, Role.HEAD) and is_rounded else assert_exact
    if target == "paddlenlp-int8":
        if spec.role is not Role.LINEAR:
            return assert_float("float16")
        return assert_same_integers if source in PER_CHANNEL else assert_nearest
    assert target == "gguf-q8_0"
    if spec.role is Role.HEAD and source == "gguf-q8_0":
        return assert_exact
    if spec.role is Role.HEAD and source in ROUNDS_HEAD:
        return assert_nearest_block
    if spec.role is not Role.LINEAR:
        return assert_float("float16" if is_matrix else "float32")
    if source in FLOATS or source == "gptq-int4-act-order":
        return assert_nearest_block
    # their scales were float16 before
    return assert_exact if source.startswith(("gptq", "awq", "gguf")) else assert_same_integers


def is_refused(source: str, target: str) -> bool:
    """Whether integers would have to be rounded a second time."""
    if target == "paddlenlp-int8":
        return source not in FLOATS | PER_CHANNEL
    return target == "gguf-q8_0" and source == "gptq-int4-act-order"


def options_of(target: str) -> dict[str, Any]:
    return {"dtype": "float32"} if target == "float" else {}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_pair_keeps_its_promise(
    tmp_path: Path, source_of: Callable[[str, str], tuple[Path, Truth]], source: str, target: str, model: str
) -> None:
    directory, truth = source_of(source, model)
    options = options_of(target)
    if is_refused(source, target):
        with pytest.raises(QuantizationError, match="rounded a second time"):
            convert(directory, tmp_path / "out", target, **options)
        assert not (tmp_path / "out").exists()
        options["allow_requantize"] = True
    report = convert(directory, tmp_path / "out", target, **options)
    with open_checkpoint(tmp_path / "out") as after, open_checkpoint(directory) as before:
        is_exact = True
        for spec in model_specs(before.config):
            weight = after.read(spec)
            promise(source, target, spec)(weight, truth[spec.name])
            is_exact = is_exact and np.array_equal(weight.to_float32(), truth[spec.name].values)
            if target == "native" and before.stored()[spec.name].dtype == "int4":
                assert after.stored()[spec.name].dtype == "int4"
        assert report.is_exact is is_exact
        assert ("requantised" in report.outcomes) is is_refused(source, target)
        assert same_model(before, after)
    written = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert written == json.loads(json.dumps(report.as_json()))


def same_model(before: Checkpoint, after: Checkpoint) -> bool:
    left_out = {"quantization": None, "stored_dtype": None}
    return {**vars(before.config), **left_out} == {**vars(after.config), **left_out}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float_and_paddlenlp_round_to_the_type_that_is_asked_for(tmp_path: Path, dtype: str) -> None:
    config = model_config("llama-untied")
    truth = SOURCES["w8a8"](tmp_path / "source", config, makers.random_tensors(config))
    convert(tmp_path / "source", tmp_path / "float", "float", dtype=dtype)
    convert(tmp_path / "source", tmp_path / "int8", "paddlenlp-int8", dtype=dtype)
    bits = {"bfloat16": 8, "float16": 11}[dtype]
    with open_checkpoint(tmp_path / "float") as floats, open_checkpoint(tmp_path / "int8") as int8:
        assert floats.config.stored_dtype == int8.config.stored_dtype == dtype
        for spec in model_specs(floats.config):
            expected = truth[spec.name].values
            for weight in (floats.read(spec), int8.read(spec)):
                np.testing.assert_allclose(weight.to_float32(), expected, rtol=2.0**-bits, atol=2.0**-25)
            assert floats.stored()[spec.name].dtype == dtype


def test_float_takes_the_type_of_the_embedding_where_none_is_asked_for(tmp_path: Path) -> None:
    config = model_config("qwen2-untied")
    makers.write_hf(tmp_path / "source", config, makers.random_tensors(config), "float16")
    report = convert(tmp_path / "source", tmp_path / "out", "float")
    assert report.is_exact
    assert "All tensors are float16." in report.sentences


def chain(directory: Path, *targets: str, **options: Any) -> Path:
    """Convert from format to format; the last directory."""
    for number, target in enumerate(targets):
        out = directory.parent / f"step-{number}-{target}"
        convert(directory, out, target, **(options if number == len(targets) - 1 else {}))
        directory = out
    return directory


@pytest.mark.parametrize("between", ["gguf-q8_0", "paddlenlp-int8"])
def test_int8_comes_back_with_the_same_integers(tmp_path: Path, between: str) -> None:
    config = model_config("llama-tied")
    tensors = makers.random_tensors(config)
    tensors["model.layers.0.mlp.up_proj.weight"][3] = 0
    makers.write_hf(tmp_path / "source", config, tensors)
    first = chain(tmp_path / "source", "native")
    with open_checkpoint(chain(first, between, "native")) as after, open_checkpoint(first) as before:
        for spec in model_specs(before.config):
            was, is_now = before.read(spec), after.read(spec)
            if spec.role is Role.LINEAR:
                assert isinstance(was, Int8Weight)
                assert isinstance(is_now, Int8Weight)
                np.testing.assert_array_equal(is_now.values, was.values)
                np.testing.assert_array_equal(is_now.scales, was.scales.astype(np.float16).astype(np.float32))


def test_gguf_whose_blocks_differ_stays_in_groups(tmp_path: Path) -> None:
    config = model_config("llama-tied")
    SOURCES["gguf-q8_0"](tmp_path / "source", config, makers.random_tensors(config))
    report = convert(tmp_path / "source", tmp_path / "out", "native")
    assert any("Still in groups" in sentence for sentence in report.sentences)
    with open_checkpoint(tmp_path / "out") as after:
        groups = after.stored()["model.layers.0.mlp.up_proj.weight"].groups
        assert groups is not None
        assert groups.size == GROUP
        assert set(after.schemes().values()) == {"w8a16"}


def test_equal_groups_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    config = model_config("llama-tied")
    SOURCES["w8a8"](tmp_path / "source", config, makers.random_tensors(config))
    kept = chain(tmp_path / "source", "gguf-q8_0", "native", keep_groups=True)
    collapsed = convert(tmp_path / "step-0-gguf-q8_0", tmp_path / "collapsed", "native")
    assert any("one scale in all its groups" in sentence for sentence in collapsed.sentences)
    assert collapsed.is_exact
    with open_checkpoint(kept) as groups, open_checkpoint(tmp_path / "collapsed") as channels:
        for spec in model_specs(groups.config):
            if spec.role is Role.LINEAR:
                assert isinstance(groups.read(spec), GroupedWeight)
                assert isinstance(channels.read(spec), Int8Weight)
            np.testing.assert_array_equal(groups.read(spec).to_float32(), channels.read(spec).to_float32())


def test_rows_that_are_no_whole_blocks_are_f16_and_said(tmp_path: Path) -> None:
    config = model_config("llama-untied", intermediate_size=80)
    truth = SOURCES["w8a8"](tmp_path / "source", config, makers.random_tensors(config))
    report = convert(tmp_path / "source", tmp_path / "out", "gguf-q8_0")
    assert any("no multiple of 32" in sentence and "2 linears" in sentence for sentence in report.sentences)
    assert report.outcomes["dequantised"].num_tensors == 2
    with open_checkpoint(tmp_path / "out") as after:
        for spec in model_specs(after.config):
            if "down_proj" in spec.name:
                assert_float("float16")(after.read(spec), truth[spec.name])


def test_linears_left_alone_stay_so_but_for_paddlenlp(tmp_path: Path) -> None:
    config = model_config("qwen2-untied")
    tensors = makers.random_tensors(config)
    left, name = "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.gate_proj.weight"
    stored = makers.compressed_tensors(tensors)
    del stored[f"{name}_scale"]
    stored[name] = tensors[name]
    scheme = makers.w8a8_scheme(["lm_head", left])
    makers.write_hf(tmp_path / "source", config | {"quantization_config": scheme}, stored)
    for target, dtype in (("native", "float32"), ("gguf-q8_0", "float16"), ("paddlenlp-int8", "int8")):
        report = convert(tmp_path / "source", tmp_path / target, target)
        with open_checkpoint(tmp_path / target) as after:
            assert after.stored()[name].dtype == dtype
        assert any(left in sentence and "no exceptions" in sentence for sentence in report.sentences) is (dtype == "int8")


def test_scales_of_an_int8_cache_are_kept_or_said_to_be_lost(tmp_path: Path) -> None:
    config = model_config("llama-tied")
    scheme = makers.w8a8_scheme(["lm_head"])
    scheme["kv_cache_scheme"] = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": "tensor"}
    stored = makers.compressed_tensors(makers.random_tensors(config))
    for layer in range(2):
        for part in ("k", "v"):
            stored[f"model.layers.{layer}.self_attn.{part}_scale"] = np.array([0.5 + layer], np.float32)
    makers.write_hf(tmp_path / "source", config | {"quantization_config": scheme}, stored)
    kept = convert(tmp_path / "source", tmp_path / "native", "native")
    lost = convert(tmp_path / "source", tmp_path / "gguf", "gguf-q8_0")
    with open_checkpoint(tmp_path / "native") as native:
        cache = native.kv_cache()
        assert cache is not None
        assert cache.scales is not None
        assert cache.scales[1].key.tolist() == [1.5, 1.5]
    assert not any("cache" in sentence for sentence in kept.sentences)
    assert any("INT8 cache" in sentence for sentence in lost.sentences)


def test_a_value_that_float16_cannot_hold_is_an_error(tmp_path: Path) -> None:
    config = model_config("llama-tied")
    tensors = makers.random_tensors(config)
    tensors["model.embed_tokens.weight"][0, 0] = 70000
    makers.write_hf(tmp_path / "source", config, tensors)
    with pytest.raises(QuantizationError, match=r"model\.embed_tokens\.weight: found a value of 7e\+04, more than float16 holds"):
        convert(tmp_path / "source", tmp_path / "out", "gguf-f16")
    assert not (tmp_path / "out").exists()
