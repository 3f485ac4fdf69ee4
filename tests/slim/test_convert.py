"""``convert``: every pair of formats, what each promises, and what happens when something goes wrong."""

from __future__ import annotations

import functools
import json
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from checkpoints import makers
from paddle_ds.checkpoints import Checkpoint, DenseTensor, GroupedWeight, Int8Weight, Weight, open_checkpoint
from paddle_ds.checkpoints.native import COMPANIONS
from paddle_ds.config.tensors import Role, TensorSpec, model_specs
from paddle_ds.errors import CheckpointError, ConfigError, QuantizationError, UnsupportedError
from paddle_ds_slim.convert import REPORT_FILE, ConversionReport, convert
from paddle_ds_slim.convert_command import convert as command
from paddle_ds_slim.exporters import FORMATS
from slim.conversion_sources import GROUP, SOURCES, Dense, Quantised, Truth, channel_truth

FLOATS = {"float", "paddlenlp", "gguf-f16"}
PER_CHANNEL = {"paddlenlp-int8", "w8a8", "w8a16", "w4a16", "gptq-int8"}
#: sources that quantise a head, or say nothing that keeps ``native`` from doing it
ROUNDS_HEAD = FLOATS | {"paddlenlp-int8"}

MODELS = {
    "llama-tied": (makers.LLAMA, True),
    "llama-untied": (makers.LLAMA, False),
    "qwen2-tied": (makers.QWEN2, True),
    "qwen2-untied": (makers.QWEN2, False),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "cache"))


def model_config(model: str, **changes: Any) -> dict[str, Any]:
    architecture, is_tied = MODELS[model]
    extents = {"hidden_size": 64, "intermediate_size": 96}
    return makers.config_json(architecture, **{**extents, "tie_word_embeddings": is_tied, **changes})


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


def write_simple(directory: Path, **changes: Any) -> Path:
    config = model_config("llama-untied", **changes)
    return makers.write_hf(directory, config, makers.random_tensors(config))


@pytest.mark.parametrize("target", FORMATS)
def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path, target: str) -> None:
    source = write_simple(tmp_path / "source")
    foreseen = convert(source, tmp_path / "out", target, dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    done = convert(source, tmp_path / "out", target)
    assert (foreseen.outcomes, foreseen.sentences) == (done.outcomes, done.sentences)
    assert foreseen.bytes_after is None
    assert done.bytes_after is not None
    assert done.bytes_after > 0


def test_errors_and_counts_of_the_report_are_those_of_the_weights(tmp_path: Path) -> None:
    source = write_simple(tmp_path / "source")
    report = convert(source, tmp_path / "out", "native")
    errors: dict[str, float] = {}
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "out") as after:
        for spec in model_specs(before.config):
            was, is_now = before.read(spec).to_float32(), after.read(spec).to_float32()
            errors[spec.name] = float(np.linalg.norm(is_now - was) / np.linalg.norm(was))
        quantised = report.outcomes["quantised"]
        assert quantised.worst == max(errors, key=lambda name: errors[name])
        assert quantised.largest_error == pytest.approx(max(errors.values()), rel=1e-4)
        assert quantised.num_tensors == sum(error > 0 for error in errors.values()) == 15
        assert report.outcomes["exact"].largest_error == 0
        num_weights = sum(spec.num_elements for spec in model_specs(before.config))
        assert sum(summary.num_weights for summary in report.outcomes.values()) == num_weights


@pytest.mark.parametrize("target", FORMATS)
def test_progress_counts_source_bytes_up_to_all(tmp_path: Path, target: str) -> None:
    calls: list[tuple[str, int, int]] = []
    convert(write_simple(tmp_path / "source"), tmp_path / "out", target, progress=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2]
    assert [call[1] for call in calls] == sorted({call[1] for call in calls})


@pytest.mark.parametrize("target", FORMATS)
def test_tokenizer_and_generation_files_travel_along(tmp_path: Path, target: str) -> None:
    from paddle_ds.engine.assets import EMBEDDED_MODEL

    convert(EMBEDDED_MODEL, tmp_path / "out", target)
    for name in COMPANIONS:
        if (EMBEDDED_MODEL / name).is_file():
            assert (tmp_path / "out" / name).read_bytes() == (EMBEDDED_MODEL / name).read_bytes()
    assert (tmp_path / "out" / "manifest.json").exists() is (target == "native")


@pytest.mark.parametrize("target", FORMATS)
def test_two_runs_write_the_same_bytes(tmp_path: Path, target: str) -> None:
    source = write_simple(tmp_path / "source")
    for name in ("first", "second"):
        convert(source, tmp_path / name, target)
    for file in (tmp_path / "first").iterdir():
        if file.name != REPORT_FILE:
            assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


@pytest.mark.parametrize("target", FORMATS)
def test_ctrl_c_leaves_nothing(tmp_path: Path, target: str) -> None:
    def interrupt(name: str, done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes / 2:
            raise KeyboardInterrupt

    source = write_simple(tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", target, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """The system refuses files of more than 60 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# the file of a safetensors writer that could not even reserve its length is closed by the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("target", FORMATS)
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path, target: str, request: pytest.FixtureRequest) -> None:
    source = write_simple(tmp_path / "source")
    request.getfixturevalue("small_disk")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(source, tmp_path / "out", target)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_occupied_destination_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(CheckpointError, match="already there"):
        convert(tmp_path / "absent", tmp_path / "out", "native")
    assert (tmp_path / "out" / "mine").read_text() == "precious"


@pytest.mark.parametrize("target", FORMATS)
def test_memory_stays_at_a_few_tensors(tmp_path: Path, target: str) -> None:
    config = model_config("llama-untied", hidden_size=128, intermediate_size=1024, num_hidden_layers=12)
    makers.write_hf(tmp_path / "source", config, makers.random_tensors(config))
    tracemalloc.start()
    convert(tmp_path / "source", tmp_path / "out", target)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest_bytes = 4 * 128 * 1024
    assert peak_bytes < 12 * largest_bytes < (tmp_path / "source" / "model.safetensors").stat().st_size / 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"to": "onnx"}, "--to 'onnx'; have: native, float"),
        ({"to": "gguf-q8_0", "dtype": "float16"}, "--dtype float16 with --to gguf-q8_0"),
        ({"to": "paddlenlp-int8", "dtype": "float32"}, "paddlenlp-int8: float16, bfloat16"),
        ({"to": "float", "keep_groups": True}, "--keep-groups is for --to native"),
    ],
)
def test_options_that_a_format_does_not_have_are_refused(tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        convert(tmp_path, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("model", "changes", "complaint"),
    [
        ("llama-untied", {"head_dim": 32}, "head_dim 32"),
        ("llama-untied", {"attention_bias": True}, "a Llama with biases"),
        ("qwen2-untied", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling of type 'yarn'"),
    ],
)
def test_paddlenlp_would_misread_some_models(tmp_path: Path, model: str, changes: dict[str, Any], complaint: str) -> None:
    config = model_config(model, **changes)
    makers.write_hf(tmp_path / "source", config, makers.random_tensors(config))
    with pytest.raises(UnsupportedError, match=complaint):
        convert(tmp_path / "source", tmp_path / "out", "paddlenlp-int8")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_and_sentences(tmp_path: Path) -> None:
    source = write_simple(tmp_path / "source")
    result = run(source, tmp_path / "out", "--to", "gguf-q8_0")
    assert result.exit_code == 0, result.output
    assert "quantised" in result.output
    assert "floating point rounded to integers" in result.output
    assert (tmp_path / "out" / "model-q8_0.gguf").is_file()


def test_the_command_prints_json_and_needs_no_destination_for_a_dry_run(tmp_path: Path) -> None:
    source = write_simple(tmp_path / "source")
    result = run(source, "--to", "native", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["version"], report["to"], report["out"], report["is_exact"]) == (1, "native", None, False)
    assert report["outcomes"]["quantised"]["num_tensors"] == 15
    assert run(source, "--to", "native").exit_code == 2


def test_the_report_holds_nothing_but_what_its_fields_say(tmp_path: Path) -> None:
    report = convert(write_simple(tmp_path / "source"), tmp_path / "out", "float")
    assert isinstance(report, ConversionReport)
    assert set(report.as_json()) == {
        *("version", "paddle_ds", "is_exact", "source", "source_format", "to", "out"),
        *("outcomes", "sentences", "bytes_before", "bytes_after"),
    }
    assert report.source_format == "huggingface"


LOAD_WITH_PADDLENLP = """
import sys
import numpy as np, paddle
from paddlenlp.transformers import LlamaForCausalLM, Qwen2ForCausalLM

for name in sys.argv[2:]:
    kind = LlamaForCausalLM if name.startswith("llama") else Qwen2ForCausalLM
    model = kind.from_pretrained(f"{sys.argv[1]}/{name}", dtype="bfloat16" if name.endswith("bf16") else "float16")
    assert model.config.quantization_config.weight_quantize_algo == "llm.int8"
    state = {key: value if value.dtype == paddle.int8 else value.astype("float32") for key, value in model.state_dict().items()}
    np.savez(f"{sys.argv[1]}/{name}.npz", **{key: value.numpy() for key, value in state.items()})
"""


def test_paddlenlp_itself_loads_what_we_write(tmp_path: Path) -> None:
    truths: dict[str, Truth] = {}
    for name, model in {"llama-tied": "llama-tied", "llama": "llama-untied", "qwen2-bf16": "qwen2-untied"}.items():
        config = model_config(model)
        tensors = makers.random_tensors(config)
        SOURCES["w8a8"](tmp_path / "source" / name, config, tensors)
        dtype = "bfloat16" if name.endswith("bf16") else "float16"
        convert(tmp_path / "source" / name, tmp_path / name, "paddlenlp-int8", dtype=dtype)
        truths[name] = channel_truth(tensors, "float32", "float32")
    arguments = [sys.executable, "-W", "ignore", "-c", LOAD_WITH_PADDLENLP, str(tmp_path), *truths]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    for name, truth in truths.items():
        state = dict(np.load(tmp_path / f"{name}.npz"))
        rtol = 2.0**-8 if name.endswith("bf16") else 2.0**-11
        for key, expected in truth.items():
            raw = key.replace("model.", f"{name[:5]}.", 1)
            if isinstance(expected, Quantised):
                module = raw.removesuffix(".weight")
                np.testing.assert_array_equal(state.pop(f"{module}.quant_weight"), expected.integers)
                np.testing.assert_allclose(state.pop(f"{module}.quant_scale"), expected.scales[:, 0], rtol=rtol)
                continue
            values = expected.values.T if key == "lm_head.weight" else expected.values
            np.testing.assert_allclose(state.pop(raw), values, rtol=rtol, atol=2.0**-25)
        if name == "llama-tied":
            state.pop("lm_head.weight")
        assert not state, f"{name}: PaddleNLP has tensors that we did not write: {list(state)}"
