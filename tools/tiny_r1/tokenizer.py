"""Builds the byte-level BPE tokenizer with R1's special tokens and chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tiny_r1.corpus import ASSISTANT, BOS, EOS, THINK_CLOSE, THINK_OPEN, USER

# (text, special) in the order and with the flags of DeepSeek-R1-Distill-Qwen: the role and think tags are NOT special,
# so that decoding with skip_special_tokens keeps them and a reasoning parser can see them.
ADDED_TOKENS = (
    (EOS, True),
    (USER, False),
    (ASSISTANT, False),
    (BOS, True),
    ("<|EOT|>", False),
    (THINK_OPEN, False),
    (THINK_CLOSE, False),
    ("<tool_call>", False),
    ("</tool_call>", False),
)

# Qwen2's rule: every digit is its own token, which column arithmetic depends on.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train merges on `texts` so that all 256 bytes, the merges and the added tokens make `vocab_size` ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    for text, special in ADDED_TOKENS:
        token = AddedToken(text, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def chat_template() -> str:
    """The template of DeepSeek-R1-Distill (MIT), the version that puts `<think>\\n` into the prompt."""
    return TEMPLATE_FILE.read_text(encoding="utf-8").rstrip("\n")


def tokenizer_config(context_tokens: int) -> dict[str, Any]:
    """The content of tokenizer_config.json, in the shape of R1-Distill's."""

    def added(text: str) -> dict[str, Any]:
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
        return {"__type": "AddedToken", "content": text, "normalized": True, **flags}

    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": added(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": added(EOS),
        "legacy": True,
        "model_max_length": context_tokens,
        "pad_token": added(EOS),
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": chat_template(),
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(tokenizer_config(context_tokens), ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
