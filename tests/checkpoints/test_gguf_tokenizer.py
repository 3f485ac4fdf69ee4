"""The tokenizer inside a GGUF file encodes as the one it was made from; one that cannot be made is said to be missing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_makers
import makers
import pytest

from paddle_ds import LLM, SamplingParams, errors
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.gguf_file import GgufFile
from paddle_ds.checkpoints.gguf_tokenizer import tokenizer_files
from paddle_ds.checkpoints.native import write_native
from paddle_ds.config.tensors import model_specs
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.text.tokenizer import Tokenizer

TEXTS = [
    "",
    "12+7",
    "Hello  world,\n\n\tit's 2026 and I'LL pay 1234.50€ …",
    "e\u0301 né 你好，世界 🙂👩‍👩‍👧 \u00a0 ﬁ",
    "<｜User｜>What is 81-46?<｜Assistant｜><think>\n35</think>",
    "def f(x):\r\n    return x**2  # a   b\n",
]
MESSAGES = [{"role": "user", "content": "12+7"}]

Metadata = dict[str, tuple[str, Any]]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_DS_CACHE_DIR", str(tmp_path / "cache"))


def write(path: Path, metadata: Metadata, num_rows: int) -> Path:
    """A tiny model with this tokenizer."""
    config = makers.config_json(vocab_size=num_rows)
    stored = gguf_makers.gguf_tensors(config, makers.random_tensors(config))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_makers.gguf_bytes(gguf_makers.gguf_metadata(config) | metadata, stored))
    return path


def check_same(found: Tokenizer, original: Tokenizer) -> None:
    assert found.num_tokens == original.num_tokens
    assert (found.bos_id, found.eos_ids) == (original.bos_id, original.eos_ids)
    assert original.special_ids <= found.special_ids
    assert found.encode_chat(MESSAGES) == original.encode_chat(MESSAGES)
    for text in TEXTS:
        ids = original.encode(text)
        assert found.encode(text) == ids
        assert found.decode(ids, skip_special_tokens=False) == original.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("pre", ["qwen2", "deepseek-r1-qwen"])
def test_the_embedded_models_tokenizer_comes_back(tmp_path: Path, pre: str) -> None:
    metadata = gguf_makers.tokenizer_metadata(EMBEDDED_MODEL, pre, num_rows=1030)
    with open_checkpoint(write(tmp_path / "m" / "tiny-r1.gguf", metadata, 1030)) as checkpoint:
        assert checkpoint.directory.name == "tiny-r1"  # what the served model is called
        assert checkpoint.directory.is_relative_to(tmp_path / "cache")
        check_same(Tokenizer.from_dir(checkpoint.directory), Tokenizer.from_dir(EMBEDDED_MODEL))


def test_the_tokenizer_of_r1_comes_back(tmp_path: Path, shared_data: Path) -> None:
    metadata = gguf_makers.tokenizer_metadata(shared_data / "r1-distill-qwen", "deepseek-r1-qwen")
    path = write(tmp_path / "r1.gguf", metadata, len(metadata["tokenizer.ggml.tokens"][1]))
    with open_checkpoint(path) as checkpoint:
        check_same(Tokenizer.from_dir(checkpoint.directory), Tokenizer.from_dir(shared_data / "r1-distill-qwen"))


def test_llama_3_splits_numbers_in_threes_and_takes_whole_words(tmp_path: Path) -> None:
    tokens = [*"abc123", "abc", "12", "123", "<s>", "</s>"]
    metadata: Metadata = {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", "llama-bpe"),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.token_type": ("[i32]", [1] * 9 + [3] * 2),
        "tokenizer.ggml.merges": ("[str]", ["1 2"]),
        "tokenizer.ggml.bos_token_id": ("u32", 9),
        "tokenizer.ggml.eos_token_id": ("u32", 10),
    }
    with open_checkpoint(write(tmp_path / "m.gguf", metadata, len(tokens))) as checkpoint:
        tokenizer = Tokenizer.from_dir(checkpoint.directory)
    ids = [tokens.index(token) for token in ("<s>", "abc", "123", "12", "</s>", "a")]
    assert tokenizer.encode("abc12312</s>a") == ids  # begins with the BOS where the file does not say
    assert tokenizer.decode(ids) == "abc12312a"
    assert tokenizer.special_ids == {9, 10}


def test_a_model_in_gguf_answers_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.loads((EMBEDDED_MODEL / "config.json").read_text(encoding="utf-8"))
    with open_checkpoint(EMBEDDED_MODEL) as source:
        tensors = {spec.name: source.read(spec).to_float32() for spec in model_specs(source.config)}
    metadata = gguf_makers.gguf_metadata(raw) | gguf_makers.tokenizer_metadata(EMBEDDED_MODEL, "qwen2", raw["vocab_size"])
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_makers.gguf_bytes(metadata, gguf_makers.gguf_tensors(raw, tensors, "q8_0")))
    with open_checkpoint(path) as checkpoint:
        write_native(checkpoint, tmp_path / "native")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "native" / name, tmp_path)
    monkeypatch.undo()  # the operators are built once, in the cache of everybody
    for model in (path, tmp_path / "native"):
        llm = LLM(str(model), num_threads=1)
        assert llm.loaded.recipe.name == "w8a16"
        assert "19" in llm.chat(MESSAGES, SamplingParams(temperature=0))[0].text


def test_it_is_made_once(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf_makers.tokenizer_metadata(EMBEDDED_MODEL, "qwen2"), 1024)
    with open_checkpoint(path) as first:
        made_at = (first.directory / "tokenizer.json").stat().st_mtime_ns
    with open_checkpoint(path) as second:
        assert second.directory == first.directory
    assert (first.directory / "tokenizer.json").stat().st_mtime_ns == made_at


def test_a_tokenizer_beside_the_file_goes_first(tmp_path: Path) -> None:
    path = write(tmp_path / "m" / "m.gguf", {"tokenizer.ggml.model": ("str", "llama")}, 1024)
    (path.parent / "tokenizer.json").write_bytes((EMBEDDED_MODEL / "tokenizer.json").read_bytes())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.directory == path.parent
    assert not (tmp_path / "cache").exists()


def change(key: str, kind: str, value: Any) -> Callable[[Metadata], object]:
    return lambda metadata: metadata.update({f"tokenizer.ggml.{key}": (kind, value)})


EDITS: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "none": (lambda metadata: metadata.clear(), "tokenizer is absent"),
    "SentencePiece": (change("model", "str", "llama"), "tokenizer is SentencePiece; have: 'gpt2'"),
    "another kind": (change("model", "str", "bert"), "tokenizer is 'bert'"),
    "another split": (change("pre", "str", "falcon"), "pre is 'falcon'; have: qwen2, deepseek-r1-qwen, llama-bpe"),
    "a split that is a number": (change("pre", "u32", 1), "pre is 1"),
    "no tokens": (lambda metadata: metadata.pop("tokenizer.ggml.tokens"), "tokens' is None; expected an array of str"),
    "tokens that are numbers": (change("tokens", "[u8]", [1, 2]), r"tokens' is \[1, 2\]"),
    "a token twice": (change("tokens", "[str]", ["a"] * 1024), "1024 tokens, 1 of them different"),
    "types of others": (change("token_type", "[i32]", [1] * 3), "1024 tokens, 1024 of them different, and 3 types"),
    "an end beyond": (change("eos_token_id", "u32", 5000), "eos_token_id' is 5000; expected an id below 1024"),
    "an end at the end": (change("add_eos_token", "bool", True), "add_eos_token is true"),
    "a beginning that is no flag": (change("add_bos_token", "u32", 1), "add_bos_token' is 1"),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS.keys())
def test_one_that_cannot_be_made_is_said_to_be_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, edit: Callable[[Metadata], object], message: str
) -> None:
    metadata = gguf_makers.tokenizer_metadata(EMBEDDED_MODEL, "qwen2")
    edit(metadata)
    path = write(tmp_path / "m.gguf", metadata, 1024)
    with pytest.raises(errors.TokenizerError, match=message):
        tokenizer_files(GgufFile(path))
    with caplog.at_level(logging.WARNING), open_checkpoint(path) as checkpoint:  # its weights can still be looked at
        assert checkpoint.directory == tmp_path
    assert [record.getMessage() for record in caplog.records] == ["gguf.no_tokenizer"]
    with pytest.raises(errors.TokenizerError, match=r"tokenizer.json: no such file"):
        Tokenizer.from_dir(checkpoint.directory)


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_bytes(b"a file, not a directory")
    path = write(tmp_path / "m.gguf", gguf_makers.tokenizer_metadata(EMBEDDED_MODEL, "qwen2"), 1024)
    with caplog.at_level(logging.WARNING), open_checkpoint(path) as checkpoint:
        assert checkpoint.directory == tmp_path
    assert [record.getMessage() for record in caplog.records] == ["gguf.no_tokenizer"]


def test_merges_of_tokens_that_are_not_there_are_the_tokenizers_error(tmp_path: Path) -> None:
    metadata = gguf_makers.tokenizer_metadata(EMBEDDED_MODEL, "qwen2")
    metadata["tokenizer.ggml.merges"] = ("[str]", ["nowhere nothing", "alone"])
    with open_checkpoint(write(tmp_path / "m.gguf", metadata, 1024)) as checkpoint, pytest.raises(errors.TokenizerError):
        Tokenizer.from_dir(checkpoint.directory)
