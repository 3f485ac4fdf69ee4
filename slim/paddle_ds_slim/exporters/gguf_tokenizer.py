"""A ``tokenizer.json`` in GGUF's words, as far as llama.cpp's own tokenizers give the same ids.

    gpt2     byte-level BPE: tokens, merges, and the name of the expression that cuts a text into words
    llama    SentencePiece's BPE with byte fallback: tokens and scores; the pair whose union scores highest is merged first
    no_vocab without a tokenizer.json: llama.cpp takes and gives ids only

llama.cpp knows expressions by name only; one without a name here is refused, because another would cut texts differently.
Kinds of tokens and the names: llama.cpp, ``src/llama-vocab.cpp`` and ``conversion/base.py``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_ds.errors import TokenizerError, UnsupportedError
from paddle_ds.text.tokenizer import Tokenizer, read_json

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"

#: expression, whether whole words are looked up before merging -> llama.cpp's name
_PRE_TOKENIZERS: Mapping[tuple[str | None, bool], str] = {
    (_QWEN2, False): "qwen2",
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",
    (None, False): "gpt-2",
}

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_METASPACE = "▁"
#: what llama.cpp gives tokens that no merge makes
_NO_SCORE = -1000.0


@dataclasses.dataclass(frozen=True)
class GgufTokenizer:
    """Arrays have ``vocab_size`` entries, padding rows included; a special id is ``None`` where there is no such token."""

    #: ``gpt2`` or ``llama``
    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    #: of ``llama``
    scores: tuple[float, ...] | None
    #: of ``gpt2``, each two tokens with a space between
    merges: tuple[str, ...] | None
    #: of ``llama``
    adds_space_prefix: bool | None
    bos_id: int | None
    #: what ends an answer; llama.cpp has room for three
    eos_ids: tuple[int, ...]
    pad_id: int | None
    unknown_id: int | None
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None


def read_tokenizer(directory: Path, vocab_size: int) -> GgufTokenizer | None:
    """The tokenizer beside the weights, or ``None`` where there is no ``tokenizer.json``.

    Raises:
        TokenizerError: a file is broken, or there are more tokens than the model has rows.
        UnsupportedError: llama.cpp has nothing that gives the same ids.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_dir(directory)
    if tokenizer.num_tokens > vocab_size:
        raise TokenizerError(f"{file}: a token has id {tokenizer.num_tokens - 1}; the model has {vocab_size} rows")
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content["model"]
    if model["type"] != "BPE":
        raise UnsupportedError(f"{file}: a tokenizer of type {model['type']!r}; have for GGUF: BPE")
    names = {number: token for token, number in model["vocab"].items()}
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    names.update({number: token["content"] for number, token in added.items()})
    tokens = tuple(names.get(number, f"[PAD{number}]") for number in range(vocab_size))
    is_sentencepiece = bool(model.get("byte_fallback"))
    unknown = model.get("unk_token") if is_sentencepiece else None
    if is_sentencepiece:
        _check_sentencepiece(model, file)
    empty = tokenizer.encode("")
    return GgufTokenizer(
        model="llama" if is_sentencepiece else "gpt2",
        pre="default" if is_sentencepiece else _pre_tokenizer(content, file),
        tokens=tokens,
        types=_types(names, added, vocab_size, unknown),
        scores=_scores(model, tokens) if is_sentencepiece else None,
        merges=None if is_sentencepiece else tuple(f"{left} {right}" for left, right in _merges(model)),
        adds_space_prefix=_adds_space_prefix(content) if is_sentencepiece else None,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
        pad_id=_pad_id(directory, tokenizer),
        unknown_id=None if unknown is None else tokenizer.token_id(unknown),
        adds_bos=tokenizer.bos_id is not None and empty[:1] == [tokenizer.bos_id],
        adds_eos=bool(tokenizer.eos_ids) and empty[1:] == [tokenizer.eos_ids[0]],
        chat_template=None if tokenizer.chat_template is None else tokenizer.chat_template.source,
    )


def _pad_id(directory: Path, tokenizer: Tokenizer) -> int | None:
    entry = read_json(directory / "tokenizer_config.json").get("pad_token")
    token = entry.get("content") if isinstance(entry, dict) else entry
    return tokenizer.token_id(token) if isinstance(token, str) else None


def _types(names: Mapping[int, str], added: Mapping[int, Any], vocab_size: int, unknown: str | None) -> tuple[int, ...]:
    types = []
    for number in range(vocab_size):
        token = names.get(number)
        if token is None:
            types.append(_UNUSED)
        elif unknown is not None and token == unknown:
            types.append(_UNKNOWN)
        elif number in added:
            is_control = added[number].get("special") or _looks_special(token)
            types.append(_CONTROL if is_control else _USER_DEFINED)
        else:
            is_byte = unknown is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            types.append(_BYTE if is_byte else _NORMAL)
    return tuple(types)


def _looks_special(token: str) -> bool:
    """R1's ``<｜User｜>`` is not marked special in its tokenizer, but is no text either; llama.cpp goes by looks, too."""
    return (token.startswith("<｜") and token.endswith("｜>")) or (token.startswith("<|") and token.endswith("|>"))


def _pre_tokenizer(content: Mapping[str, Any], file: Path) -> str:
    """llama.cpp's name of how a text is cut into words."""
    found = content.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", []) if found.get("type") == "Sequence" else [found]
    kinds = [step.get("type") for step in steps]
    byte_level = steps[-1] if kinds and kinds[-1] == "ByteLevel" else None
    ignores_merges = bool(content["model"].get("ignore_merges"))
    expression: str | None = None
    if byte_level is not None and kinds == ["Split", "ByteLevel"] and not byte_level.get("use_regex", True):
        pattern = steps[0].get("pattern", {}).get("Regex")
        is_plain = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
        expression = pattern if is_plain else ""
    elif kinds != ["ByteLevel"] or byte_level is None or not byte_level.get("use_regex", True):
        raise UnsupportedError(f"{file}: pre_tokenizer is {kinds}; have for GGUF: Split and ByteLevel, or ByteLevel alone")
    name = _PRE_TOKENIZERS.get((expression, ignores_merges))
    if name is None or byte_level.get("add_prefix_space"):
        raise UnsupportedError(
            f"{file}: llama.cpp has no name for this way to cut a text into words (expression {expression!r}, "
            f"ignore_merges {ignores_merges}); have: {', '.join(sorted(_PRE_TOKENIZERS.values()))}"
        )
    return name


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def _scores(model: Mapping[str, Any], tokens: tuple[str, ...]) -> tuple[float, ...]:
    """Minus the rank of the first merge that makes a token: what SentencePiece's scores were before they became ranks."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(model)):
        ranks.setdefault(left + right, rank)
    lowest = min(_NO_SCORE, -float(len(ranks)))
    return tuple(-float(ranks[token]) if token in ranks else lowest for token in tokens)


def _check_sentencepiece(model: Mapping[str, Any], file: Path) -> None:
    """llama.cpp merges any two pieces whose union is a token; the merges must say the same."""
    merges, vocab = set(_merges(model)), model["vocab"]
    for token in vocab:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab and (left, right) not in merges and not token.startswith("<"):
                raise UnsupportedError(
                    f"{file}: {left!r} and {right!r} make the token {token!r}, but no merge says so; llama.cpp would merge them"
                )


def _adds_space_prefix(content: Mapping[str, Any]) -> bool:
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    before = content.get("pre_tokenizer") or {}
    is_prepended = any(step.get("type") == "Prepend" and step.get("prepend") == _METASPACE for step in steps)
    return is_prepended or (before.get("type") == "Metaspace" and before.get("prepend_scheme", "always") != "never")
