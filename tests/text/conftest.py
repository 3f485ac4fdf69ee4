"""Tokenizers that the tests build themselves, so that a clone without the shared data tests everything but real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from paddle_ds.text import Tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
CORPUS = ["Hello world, how are you?", "你好，世界！今天天气很好。", "naïve café 😀👩‍👩‍👧 emoji", "the cat sat on the mat"] * 3


def save(directory: Path, backend: tokenizers.Tokenizer, tokenizer_config: dict[str, Any] | None = None, **others: Any) -> Path:
    """Write a tokenizer directory; ``others`` are further JSON files by stem."""
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    if tokenizer_config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, ensure_ascii=False), encoding="utf-8")
    for stem, content in others.items():
        (directory / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def byte_level_backend(special_think: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE of about 300 tokens; every byte has a token, so any text and any split of it is possible."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    added = [tokenizers.AddedToken(text, special=special_think, normalized=False) for text in ("<think>", "</think>")]
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.add_tokens(added)
    bos = backend.token_to_id("<bos>")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", pair=None, special_tokens=[("<bos>", bos)])
    return backend


def sentencepiece_backend(decoder: Any = None) -> tokenizers.Tokenizer:
    """A BPE with byte fallback in Llama's manner: ▁ for space, one added at the start, <0xHH> for the rest."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrdaistn", "好"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "w"), ("o", "r"), ("▁", "a")]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoder or decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)])
    return backend


BYTE_LEVEL_CONFIG = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "chat_template": TEMPLATE}


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., Path]:
    return save


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = save(tmp_path_factory.mktemp("bytelevel"), byte_level_backend(), BYTE_LEVEL_CONFIG)
    return Tokenizer.from_dir(path)


@pytest.fixture(scope="session")
def byte_level_special_think(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = save(tmp_path_factory.mktemp("special"), byte_level_backend(special_think=True), BYTE_LEVEL_CONFIG)
    return Tokenizer.from_dir(path)


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(save(tmp_path_factory.mktemp("sp"), sentencepiece_backend(), {"bos_token": "<s>"}))


@pytest.fixture(scope="session")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")])
    return Tokenizer.from_dir(save(tmp_path_factory.mktemp("metaspace"), sentencepiece_backend(decoder)))


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece", "metaspace"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    return tokenizer


@pytest.fixture(scope="session")
def make_backend() -> dict[str, Callable[..., tokenizers.Tokenizer]]:
    return {"byte_level": byte_level_backend, "sentencepiece": sentencepiece_backend}


@pytest.fixture(scope="session")
def r1(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_dir(shared_data / "r1-distill-qwen")


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_dir(shared_data / "stories260k")
