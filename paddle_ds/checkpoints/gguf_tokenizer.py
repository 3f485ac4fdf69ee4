"""The tokenizer inside a GGUF file, as the files that :class:`paddle_ds.text.Tokenizer` reads.

Byte-level BPE (``tokenizer.ggml.model`` is ``gpt2``) can be written down again as a ``tokenizer.json``: tokens, merges, which
tokens are special, and by name (``tokenizer.ggml.pre``) how text is split before. The split expressions are those of the
models' own ``tokenizer.json``. What is made lies in the cache::

    <cache>/gguf/<digest of the metadata>/<name of the file>/   tokenizer.json, tokenizer_config.json, config.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_ds.checkpoints.gguf_config import shown
from paddle_ds.checkpoints.gguf_file import GgufFile
from paddle_ds.checkpoints.new_directory import new_directory
from paddle_ds.errors import CheckpointError, TokenizerError
from paddle_ds.logs import fields

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"

#: part of the digest: another number makes everything anew
_VERSION = b"1"

#: values of ``tokenizer.ggml.token_type``
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True)
class _Split:
    """How a family of tokenizers cuts text before BPE."""

    pattern: str
    #: Unicode normalisation before everything else
    normalizer: str | None
    #: whether a whole word that is a token needs no merges
    ignores_merges: bool
    #: whether a text begins with the BOS where the file does not say
    adds_bos: bool


_QWEN2 = _Split(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_WORDS_AND_SPACES}", "NFC", False, False)
_LLAMA3 = _Split(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_WORDS_AND_SPACES}", None, True, True)

_SPLITS: Mapping[str, _Split] = {"qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2, "llama-bpe": _LLAMA3}

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def tokenizer_directory(file: GgufFile, model: Mapping[str, Any], cache: Path) -> Path:
    """Where the tokenizer of a GGUF file is: the file's own directory if there is a ``tokenizer.json``, else one in ``cache``.

    A tokenizer that cannot be made is no error here, because weights can be looked at and converted without one: a warning
    says why, and the file's own directory, which lacks it, is the answer.

    Args:
        model: the fields of a ``config.json``, written beside what is made.
    """
    beside = file.path.parent
    if (beside / TOKENIZER).is_file():
        return beside
    try:
        return _made(file, model, cache)
    except (TokenizerError, CheckpointError) as error:
        log.warning("gguf.no_tokenizer", extra=fields(because=error.message))
        return beside


def tokenizer_files(file: GgufFile) -> dict[str, Any]:
    """Contents of ``tokenizer.json`` and ``tokenizer_config.json``, by name.

    Raises:
        TokenizerError: the metadata have none, of a kind that cannot be written down so, or a broken one.
        CorruptFileError: a text in them is not UTF-8.
    """
    model = file.value("tokenizer.ggml.model")
    if model != "gpt2":
        found = "is SentencePiece" if model == "llama" else "is absent" if model is None else f"is {shown(model)}"
        raise TokenizerError(_advice(file, f"its tokenizer {found}; have: 'gpt2', byte-level BPE"))
    pre = file.value("tokenizer.ggml.pre")
    split = _SPLITS.get(pre) if isinstance(pre, str) else None
    if split is None:
        raise TokenizerError(_advice(file, f"tokenizer.ggml.pre is {shown(pre)}; have: {', '.join(_SPLITS)}"))
    tokens = _list(file, "tokens", str)
    types = _list(file, "token_type", int, [_NORMAL] * len(tokens))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise TokenizerError(f"{file.path}: {len(tokens)} tokens, {len(set(tokens))} of them different, and {len(types)} types")
    merges = [merge.split(" ", 1) for merge in _list(file, "merges", str, [])]
    return {
        TOKENIZER: _tokenizer_json(split, tokens, types, merges),
        "tokenizer_config.json": _tokenizer_config(file, split, tokens),
    }


def _made(file: GgufFile, model: Mapping[str, Any], cache: Path) -> Path:
    digest = hashlib.sha256(_VERSION + file.header_bytes()).hexdigest()[:16]
    out = cache.expanduser().absolute() / "gguf" / digest / file.path.stem
    if not (out / TOKENIZER).is_file():
        contents = {**tokenizer_files(file), "config.json": model}
        try:
            with new_directory(out) as partial:
                for name, content in contents.items():
                    (partial / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        except CheckpointError:
            if not (out / TOKENIZER).is_file():  # else another process was faster
                raise
    return out


def _tokenizer_json(split: _Split, tokens: list[str], types: list[int], merges: list[list[str]]) -> dict[str, Any]:
    """Tokens that are never cut stay in the vocabulary too, which gives them their ids; padding is left out."""
    added = [
        {
            **{"id": id_, "content": token, "special": kind != _USER_DEFINED},
            **{"single_word": False, "lstrip": False, "rstrip": False, "normalized": False},
        }
        for id_, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    pattern = {"type": "Split", "pattern": {"Regex": split.pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": split.normalizer} if split.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, _BYTE_LEVEL]},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": split.ignores_merges,
            "vocab": {token: id_ for id_, token in enumerate(tokens) if types[id_] != _UNUSED},
            "merges": merges,
        },
    }


def _tokenizer_config(file: GgufFile, split: _Split, tokens: list[str]) -> dict[str, Any]:
    adds_bos, adds_eos = file.value("tokenizer.ggml.add_bos_token"), file.value("tokenizer.ggml.add_eos_token")
    if adds_eos:
        raise TokenizerError(_advice(file, "tokenizer.ggml.add_eos_token is true, which no model that answers wants"))
    if adds_bos is not None and not isinstance(adds_bos, bool):
        raise TokenizerError(f"{file.path}: metadata 'tokenizer.ggml.add_bos_token' is {shown(adds_bos)}; expected true or false")
    config: dict[str, Any] = {"add_bos_token": split.adds_bos if adds_bos is None else adds_bos}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        id_ = file.value(f"tokenizer.ggml.{name}_token_id")
        if id_ is not None and (type(id_) is not int or not 0 <= id_ < len(tokens)):
            key = f"tokenizer.ggml.{name}_token_id"
            raise TokenizerError(f"{file.path}: metadata '{key}' is {shown(id_)}; expected an id below {len(tokens)}")
        config[f"{role}_token"] = None if id_ is None else tokens[id_]
    template = file.value("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _list(file: GgufFile, name: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    value = file.value(f"tokenizer.ggml.{name}")
    value = default if value is None else value
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise TokenizerError(
            f"{file.path}: metadata 'tokenizer.ggml.{name}' is {shown(value)}; expected an array of {kind.__name__}"
        )
    return value


def _advice(file: GgufFile, complaint: str) -> str:
    return f"{file.path}: {complaint}. Place the model's tokenizer.json and tokenizer_config.json beside the file"
