"""Token ids to bytes to text, one token at a time.

A tokenizer's decoder is read once into :class:`DecodeRules`; from then on a token is a fixed byte string and the answer
is their concatenation, decoded as UTF-8:

    ids        [ 19526 , 254 , 14990 ]
    bytes        E4 BD   A0    68 65 6C 6C 6F
    text         (held)  你    hello

Only the very start of a text is special: decoders of the SentencePiece family drop the space they had put there.
Where bytes are not UTF-8, each maximal ill-formed part becomes one U+FFFD (Unicode 16, section 3.9, as Rust's and
Python's lossy decoders do). The ``tokenizers`` library differs in one case: its ByteFallback turns a whole run of byte
tokens into U+FFFD when any part of it is ill-formed, also characters that were complete; a stream cannot take those
back.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paddle_ds.errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte (``bytes_to_unicode`` of openai/gpt-2), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_level_alphabet()


@dataclasses.dataclass(frozen=True)
class DecodeRules:
    """What a tokenizer's decoder does, as data.

    Attributes:
        byte_level: tokens are spelt in GPT-2's byte alphabet.
        byte_fallback: a token ``<0xE4>`` is that byte.
        replacements: (old, new) applied inside every token, in order.
        drop_in_first: this character is dropped from the first token of a text (Metaspace).
        strip_char: character stripped from the start of the text, at most ``num_strip`` times.
        separator: put between tokens (a tokenizer without a decoder joins with a space).
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    drop_in_first: str = ""
    strip_char: str = " "
    num_strip: int = 0
    separator: bytes = b""

    def bytes_of(self, token: str, *, first: bool = False) -> bytes:
        """The bytes a token stands for; ``first`` where nothing was decoded before it."""
        if self.byte_level:
            try:
                return bytes([_BYTE_OF_CHAR[char] for char in token])
            except KeyError:  # an added token, spelt as it is
                return token.encode()
        match = _BYTE_TOKEN.fullmatch(token) if self.byte_fallback else None
        if match:
            return bytes([int(match[1], 16)])
        if first and self.drop_in_first:
            token = token.replace(self.drop_in_first, "")
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()


def parse_decoder(state: bytes | None, where: str) -> DecodeRules:
    """Read the ``decoder`` entry of a tokenizer.json; ``None`` where it has none.

    Raises:
        TokenizerError: the decoder holds a step that is not known here.
    """
    if state is None:
        return DecodeRules(separator=b" ")
    spec = json.loads(state)
    steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    rules = DecodeRules()
    fused = False
    for step in steps:
        kind = step["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "ByteLevel" and len([s for s in steps if s["type"] != "Fuse"]) == 1:
            rules = dataclasses.replace(rules, byte_level=True)
        elif kind == "ByteFallback" and not fused:
            rules = dataclasses.replace(rules, byte_fallback=True)
        elif kind == "Replace" and not fused and "String" in step["pattern"]:
            pair = (step["pattern"]["String"], step["content"])
            rules = dataclasses.replace(rules, replacements=(*rules.replacements, pair))
        elif kind == "Metaspace" and not fused:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            pair = (step["replacement"], " ")
            drop = "" if scheme == "never" else step["replacement"]
            rules = dataclasses.replace(rules, replacements=(*rules.replacements, pair), drop_in_first=drop)
        elif kind == "Strip" and fused and step["stop"] == 0:
            rules = dataclasses.replace(rules, strip_char=step["content"], num_strip=step["start"])
        else:
            have = "ByteLevel alone; or ByteFallback, Replace of a string, Metaspace, then Fuse, then Strip at the start"
            raise TokenizerError(f"{where}: cannot decode with {json.dumps(step, ensure_ascii=False)}; have: {have}")
    return rules


class TokenBytes:
    """Bytes of each token, worked out on first use and then kept."""

    def __init__(self, rules: DecodeRules, id_to_token: Callable[[int], str | None]) -> None:
        self.rules = rules
        self._id_to_token = id_to_token
        self._cache: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """Bytes of a token inside a text; empty for an id that no token has."""
        data = self._cache.get(token_id)
        if data is None:
            data = self._cache[token_id] = self.rules.bytes_of(self._token(token_id))
        return data

    def at_start(self, token_id: int) -> bytes:
        """Bytes of a token that opens a text."""
        return self.rules.bytes_of(self._token(token_id), first=True)

    def _token(self, token_id: int) -> str:
        return (self._id_to_token(token_id) or "") if 0 <= token_id < 2**32 else ""


class ByteStreamDecoder:
    """Tokens in, certain text out; state is at most three undecoded bytes and the rules for the start of the text."""

    def __init__(self, table: TokenBytes, skip_ids: frozenset[int]) -> None:
        self._table = table
        self._skip_ids = skip_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._num_strip = table.rules.num_strip

    def push(self, token_ids: Iterable[int], *, final: bool = False) -> str:
        """Text that no later token can change; with ``final`` also what is incomplete, as U+FFFD."""
        table, skip_ids, separator = self._table, self._skip_ids, self._table.rules.separator
        parts: list[bytes] = []
        for token_id in token_ids:
            if token_id in skip_ids:
                continue
            data = table[token_id]
            if self._at_start:
                data = table.at_start(token_id)
                self._at_start = False
            elif separator:
                data = separator + data
            parts.append(data)
        text = self._utf8.decode(b"".join(parts), final)
        return self._strip_start(text) if self._num_strip and text else text

    def continue_from(self, token_ids: Sequence[int]) -> None:
        """Stand where pushing these tokens would lead, at a cost that does not grow with their number.

        UTF-8 synchronises itself: bytes of an unfinished character lie within the last three, so that the start of the
        text and its last few tokens say everything.
        """
        num_read = 0
        while num_read < len(token_ids) and (self._at_start or self._num_strip):
            self.push(token_ids[num_read : num_read + 1])
            num_read += 1
        start, num_bytes = len(token_ids), 0
        while start > num_read and num_bytes < 4:
            start -= 1
            num_bytes += 0 if token_ids[start] in self._skip_ids else len(self._table[token_ids[start]])
        self.push(token_ids[start:])

    def _strip_start(self, text: str) -> str:
        char = self._table.rules.strip_char
        while self._num_strip and text.startswith(char):
            text = text[1:]
            self._num_strip -= 1
        if text:
            self._num_strip = 0
        return text
