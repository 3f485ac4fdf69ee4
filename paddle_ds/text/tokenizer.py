"""A tokenizer's files as one object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers  # type: ignore[import-untyped]

from paddle_ds.errors import ChatTemplateError, InvalidRequest, TokenizerError
from paddle_ds.text.decoding import ByteStreamDecoder, TokenBytes, parse_decoder
from paddle_ds.text.template import ChatTemplate, read_chat_template

_SPECIAL_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """Text to ids and back, with what belongs to it: special ids, the ids that end a text, the chat template.

    Attributes:
        num_tokens: highest id plus one; ids from here up are padding of the model's vocabulary and are never sampled.
        bos_id: id that opens a text, or ``None``.
        eos_ids: ids that end an answer: tokenizer_config.json's, then those that generation_config.json and
            config.json add.
        special_ids: ids left out of the text by ``skip_special_tokens``.
        chat_template: the checkpoint's template, or ``None``.
        token_bytes_table: bytes of every token, for the incremental detokenizer.
    """

    def __init__(self, backend: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
        backend.no_truncation()  # a tokenizer.json may carry both; a prompt must neither be cut nor filled silently
        backend.no_padding()
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        if not vocab:
            raise TokenizerError(f"{files.tokenizer}: the vocabulary is empty")
        self.num_tokens: int = max(vocab.values()) + 1
        self.token_bytes_table = TokenBytes(parse_decoder(_decoder_state(backend), str(files.tokenizer)), backend.id_to_token)
        roles = _special_roles(files, vocab)
        opened_by = backend.encode("").ids[:1]
        self.bos_id = _bos_id(files, roles, vocab, opened_by)
        self.eos_ids = _eos_ids(files, roles, vocab, self.num_tokens)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special) | {
            vocab[token] for token in roles.values()
        }
        adds_bos = self.bos_id is not None and opened_by == [self.bos_id]
        self._adds_bos = adds_bos
        self._wants_bos = self.bos_id is not None and bool(files.config.get("add_bos_token", adds_bos))
        self._bos_text = backend.id_to_token(self.bos_id) if self.bos_id is not None else None
        if self._bos_text is not None:
            roles.setdefault("bos_token", self._bos_text)
        self.chat_template: ChatTemplate | None = read_chat_template(files.directory, files.config, roles)

    @classmethod
    def from_dir(cls, path: Path) -> Tokenizer:
        """Read ``tokenizer.json`` and, where present, the JSON files and chat template beside it.

        Raises:
            TokenizerError: a file is absent or broken; the message names it.
        """
        files = TokenizerFiles(Path(path))
        try:
            backend = tokenizers.Tokenizer.from_str(files.tokenizer.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TokenizerError(f"{files.tokenizer}: no such file") from None
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(f"{files.tokenizer}: not a usable tokenizer: {error}") from error
        try:
            return cls(backend, files)
        except ChatTemplateError as error:
            raise TokenizerError(f"{files.directory}: {error.message}") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text; a BOS that the text already begins with is not added again.

        Raises:
            InvalidRequest: the text holds half of a surrogate pair, which has no UTF-8 form.
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Ids of several texts, worked out in parallel where the library can."""
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest("the text cannot be encoded as UTF-8: it holds half of a surrogate pair") from error
        if not add_special_tokens:
            return [encoding.ids for encoding in encodings]
        return [self._with_bos(encoding.ids, text) for encoding, text in zip(encodings, texts, strict=True)]

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> list[int]:
        """Ids of a conversation, rendered by the chat template. The template alone writes the BOS, as in transformers.

        Raises:
            ChatTemplateError: there is no template, or it refuses the messages.
        """
        if self.chat_template is None:
            raise ChatTemplateError("this model has no chat template; use the completions endpoint with a plain prompt")
        return self.encode(self.chat_template.render(messages, **template_kwargs), add_special_tokens=False)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; an id that no token has gives nothing."""
        decoder = ByteStreamDecoder(self.token_bytes_table, self.special_ids if skip_special_tokens else frozenset())
        return decoder.push(ids, final=True)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes a token stands for inside a text; empty for an id that no token has."""
        return self.token_bytes_table[token_id]

    def token_text(self, token_id: int) -> str:
        """A token for people: U+FFFD where its bytes are no full character."""
        return self.token_bytes_table[token_id].decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """Id of the token spelt exactly so, or ``None``."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def _with_bos(self, ids: list[int], text: str) -> list[int]:
        has_own = self._bos_text is not None and text.startswith(self._bos_text)
        num_bos = int(self._adds_bos) + int(has_own)
        wanted = int(self._wants_bos or has_own)
        if self.bos_id is None or num_bos == wanted:
            return ids
        return [self.bos_id, *ids] if num_bos < wanted else ids[num_bos - wanted :]


class TokenizerFiles:
    """The files of one tokenizer directory; those that are absent read as empty."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tokenizer = directory / "tokenizer.json"
        self.config = read_json(directory / "tokenizer_config.json")
        self.generation = read_json(directory / "generation_config.json")
        self.model = read_json(directory / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object")
    return value


def _decoder_state(backend: tokenizers.Tokenizer) -> bytes | None:
    state = backend.decoder.__getstate__() if backend.decoder is not None else None
    return state if isinstance(state, bytes) else None


def _special_roles(files: TokenizerFiles, vocab: Mapping[str, int]) -> dict[str, str]:
    """``bos_token`` and the like, as far as tokenizer_config.json names them."""
    roles: dict[str, str] = {}
    for role in _SPECIAL_ROLES:
        entry = files.config.get(role)
        token = entry.get("content") if isinstance(entry, dict) else entry
        if token is None:
            continue
        if not isinstance(token, str) or token not in vocab:
            raise TokenizerError(f"{files.directory / 'tokenizer_config.json'}: {role} {token!r} is not in the vocabulary")
        roles[role] = token
    return roles


def _bos_id(files: TokenizerFiles, roles: Mapping[str, str], vocab: Mapping[str, int], opened_by: list[int]) -> int | None:
    """tokenizer_config.json decides, also for none. config.json is never asked: R1's names the end-of-text id there."""
    if "bos_token" in files.config:
        return vocab[roles["bos_token"]] if "bos_token" in roles else None
    if opened_by:
        return opened_by[0]
    value = files.generation.get("bos_token_id")
    return value if isinstance(value, int) and value in vocab.values() else None


def _eos_ids(files: TokenizerFiles, roles: Mapping[str, str], vocab: Mapping[str, int], num_tokens: int) -> tuple[int, ...]:
    ids = [vocab[roles["eos_token"]]] if "eos_token" in roles else []
    for name, content in (("generation_config.json", files.generation), ("config.json", files.model)):
        value = content.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in listed):
            raise TokenizerError(f"{files.directory / name}: eos_token_id {value!r} is neither an id nor a list of ids")
        ids += [item for item in listed if 0 <= item < num_tokens]  # some configurations write -1 for none
    return tuple(dict.fromkeys(ids))
