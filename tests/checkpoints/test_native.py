"""The native writer: what it writes reads back as round-to-nearest of the source, and nothing half-written stays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints import Checkpoint, DenseTensor, Int8Weight, open_checkpoint
from paddle_ds.checkpoints.native import write_native
from paddle_ds.checkpoints.rounding import quantize_rows
from paddle_ds.config.model import ModelConfig
from paddle_ds.config.tensors import model_specs


def write_source(directory: Path, kind: str, config: dict[str, Any], dtype: str = "bfloat16") -> Path:
    tensors = makers.random_tensors(config)
    if kind == "huggingface":
        return makers.write_hf(directory, config, tensors, dtype)
    return makers.write_paddlenlp(directory, config, makers.paddlenlp_tensors(config, tensors, dtype), kind)


def assert_is_rounded(source: Checkpoint, native: Checkpoint) -> None:
    """Every linear (and an untied head) of ``native`` is ``source`` rounded, everything else is the same."""
    for spec in model_specs(source.config):
        before, after = source.read(spec), native.read(spec)
        if makers.is_linear(spec.name) or spec.name == "lm_head.weight":
            expected = quantize_rows(before.to_float32())
            assert isinstance(after, Int8Weight)
            np.testing.assert_array_equal(after.values, expected.values)
            np.testing.assert_array_equal(after.scales, expected.scales)
        else:
            assert isinstance(before, DenseTensor)
            assert isinstance(after, DenseTensor)
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after.values, before.values)


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 5000], ids=["one file", "shards"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["huggingface", "pdparams", "safetensors"])
def test_round_trip(tmp_path: Path, kind: str, is_tied: bool, max_shard_bytes: int) -> None:
    config = makers.config_json(tie_word_embeddings=is_tied, torch_dtype="bfloat16")
    with open_checkpoint(write_source(tmp_path / "source", kind, config)) as source:
        write_native(source, tmp_path / "out", max_shard_bytes=max_shard_bytes)
        with open_checkpoint(tmp_path / "out") as native:
            assert native.format == "compressed-tensors"
            assert native.ignored() == ({"lm_head.weight"} if is_tied else set())
            assert_is_rounded(source, native)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(shards) > 1) is (max_shard_bytes == 5000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() is (len(shards) > 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("case", ["qwen2-rope-yarn", "llama-rope-llama3-legacy", "llama-biases", "llama-head-dim"])
def test_config_describes_the_same_model(tmp_path: Path, golden_dir: Path, case: str) -> None:
    with open_checkpoint(golden_dir / "hf" / case) as source:
        write_native(source, tmp_path / "out")
        after = ModelConfig.from_dir(tmp_path / "out")
        assert {**vars(source.config), "quantization": None} == {**vars(after), "quantization": None}


def test_config_of_a_paddlenlp_source_is_complete_for_others(tmp_path: Path) -> None:
    config = makers.config_json(makers.LLAMA, rope_scaling_type="linear", rope_scaling_factor=2.0, paddlenlp_version="3.0")
    del config["architectures"]
    with open_checkpoint(write_source(tmp_path / "source", "pdparams", config)) as source:
        write_native(source, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert (written["rope_scaling"]["rope_type"], written["rope_scaling"]["factor"]) == ("linear", 2.0)
    assert "paddlenlp_version" not in written


def test_scheme_is_llm_compressors_own(tmp_path: Path, shared_data: Path) -> None:
    with open_checkpoint(shared_data / "stories260k") as source:
        write_native(source, tmp_path / "out")
    ours, theirs = (
        json.loads((directory / "config.json").read_text())["quantization_config"]
        for directory in (tmp_path / "out", shared_data / "stories260k-w8a8")
    )
    assert ours == theirs


def test_an_int8_source_is_copied_bit_by_bit_and_its_exceptions_stay(tmp_path: Path) -> None:
    config = makers.config_json(quantization_config=makers.w8a8_scheme(["lm_head"]))
    stored = makers.compressed_tensors(makers.random_tensors(config))
    stored["model.layers.0.mlp.up_proj.weight"][0, 0] = -128
    makers.write_files(tmp_path / "source", "model", ".safetensors", [makers.safetensors_bytes(stored)], [[]])
    makers.write_json(tmp_path / "source" / "config.json", config)
    with open_checkpoint(tmp_path / "source") as source:
        write_native(source, tmp_path / "out")
        with open_checkpoint(tmp_path / "out") as native:
            assert native.ignored() == {"lm_head.weight"}
            for spec in model_specs(source.config):
                before, after = source.read(spec), native.read(spec)
                np.testing.assert_array_equal(before.values, after.values)
                if isinstance(before, Int8Weight):
                    assert isinstance(after, Int8Weight)
                    np.testing.assert_array_equal(before.scales, after.scales)


def test_loads_in_the_public_library_and_the_manifest_is_true(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    config = makers.config_json(torch_dtype="float16")
    with open_checkpoint(write_source(tmp_path / "source", "huggingface", config, "float16")) as source:
        write_native(source, tmp_path / "out", max_shard_bytes=5000)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    loaded = {}
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        loaded.update({name: (values, file.name) for name, values in load_file(file).items()})
    assert set(loaded) == set(manifest["tensors"])
    for name, (values, file_name) in loaded.items():
        entry = manifest["tensors"][name]
        assert entry["sha256"] == hashlib.sha256(values.tobytes()).hexdigest()
        assert (tuple(entry["shape"]), entry["dtype"], entry["file"]) == (values.shape, str(values.dtype), file_name)
    assert manifest["source"] == "huggingface"
    assert set(manifest["tools"]) == {"paddle_ds", "numpy", "python"}


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    with open_checkpoint(write_source(tmp_path / "source", "huggingface", makers.config_json())) as source:
        for name in ("first", "second"):
            write_native(source, tmp_path / name)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_tokenizer_and_generation_files_travel_along(tmp_path: Path) -> None:
    source_dir = write_source(tmp_path / "source", "huggingface", makers.config_json())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        (source_dir / name).write_text(name)
    (source_dir / "README.md").write_text("not ours")
    with open_checkpoint(source_dir) as source:
        write_native(source, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert not (tmp_path / "out" / "README.md").exists()


def test_progress_counts_source_bytes_up_to_all(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    with open_checkpoint(write_source(tmp_path / "source", "huggingface", makers.config_json())) as source:
        write_native(source, tmp_path / "out", progress=lambda *call: calls.append(call))
        assert [name for name, _, _ in calls] == [spec.name for spec in model_specs(source.config)]
        total_bytes = sum(stored.nbytes for stored in source.stored().values())
    assert calls[-1][1:] == (total_bytes, total_bytes)
    assert [call[1] for call in calls] == sorted({call[1] for call in calls})


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    config = makers.config_json()
    tensors = makers.random_tensors(config)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = np.inf
    source = open_checkpoint(makers.write_hf(tmp_path / "source", config, tensors))
    with source, pytest.raises(errors.TensorNotFiniteError, match="down_proj"):
        write_native(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_occupied_destination_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with open_checkpoint(write_source(tmp_path / "source", "huggingface", makers.config_json())) as source:
        with pytest.raises(errors.CheckpointError, match="already there"):
            write_native(source, tmp_path / "out")
        (tmp_path / "out" / "mine").unlink()
        write_native(source, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_memory_stays_at_one_tensor(tmp_path: Path) -> None:
    import tracemalloc

    config = makers.config_json(hidden_size=256, intermediate_size=2048, num_hidden_layers=6, vocab_size=512)
    with open_checkpoint(write_source(tmp_path / "source", "huggingface", config)) as source:
        tracemalloc.start()
        write_native(source, tmp_path / "out")
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        total_bytes = sum(stored.nbytes for stored in source.stored().values())
    assert total_bytes > 20_000_000
    largest = 2048 * 256
    # one INT8 tensor and its block in float32, twice; the whole model would be forty times that
    assert peak_bytes < largest * (1 + 4 + 4) + 2_000_000
