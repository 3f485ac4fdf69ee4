"""Calibration files: JSON lines, JSON arrays and plain text to samples. No tokenizer and no model here.

    file ──▶ bytes ──▶ UTF-8 text ──┬─ JSON  ──▶ one sample a line or array item ──▶ TextSample | ChatSample
                                    └─ plain ──▶ one sample a document           ──▶ TextSample

Plain text is **running text**: calibration wants long sequences, so a blank line is part of the text and only a line that
holds nothing but ``<|endoftext|>`` (the mark that GPT-2 and TinyStories made common) starts a new document.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paddle_ds.errors import CalibrationError, PaddleDSError
from paddle_ds.text import normalise_messages
from paddle_ds.text.reasoning import THINK_END, THINK_START

#: a calibration needs some hundred kilobytes; the limit keeps a corpus of gigabytes out of memory
MAX_FILE_BYTES = 256 * 2**20
#: a line of plain text that separates documents
DOCUMENT_MARK = "<|endoftext|>"

_JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_PLAIN_SUFFIXES = frozenset({".txt", ".text", ".md"})
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
#: what templates may read of a message; data sets add weights, ids and the like, which mean nothing to them
_MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Something to calibrate on; always one of the three classes below.

    Attributes:
        source: name of the file, or ``self-generated``; plain texts of one source may share a sequence.
        where: file and line for an error message.
    """

    source: str
    where: str


@dataclasses.dataclass(frozen=True)
class TextSample(Sample):
    """Running text: is cut into windows where it is long, packed with its neighbours where it is short."""

    text: str


@dataclasses.dataclass(frozen=True)
class ChatSample(Sample):
    """A conversation as :func:`paddle_ds.text.normalise_messages` gives it; the last answer may hold its reasoning in tags."""

    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class TokenSample(Sample):
    """Token ids of the model itself, template included: nothing is added to them."""

    token_ids: tuple[int, ...]


def read_samples(path: Path) -> list[Sample]:
    """Read a calibration file.

    ``.json``, ``.jsonl`` and ``.ndjson`` are JSON, ``.txt``, ``.text`` and ``.md`` are plain text; with any other name the
    first character decides: ``{`` and ``[`` mean JSON. JSON is an array of objects, one object over several lines, or one
    object a line; blank lines are passed over, and so are objects whose text is blank.

    Raises:
        CalibrationError: the file is absent, unreadable, too large, not UTF-8 text, damaged JSON, of a layout that is not
            known, or without any text. The message names the line.
    """
    path = Path(path)
    text = _read_text(path)
    start = text.lstrip()[:1]
    if path.suffix.lower() in _JSON_SUFFIXES or (path.suffix.lower() not in _PLAIN_SUFFIXES and start in ("{", "[")):
        records = _array(text, path) if start == "[" else _objects(text, path)
        samples = [_sample(record, path.name, where) for record, where in records]
    else:
        samples = [TextSample(path.name, where, document) for document, where in _documents(text, path)]
    usable = [sample for sample in samples if sample is not None]
    if not usable:
        raise CalibrationError(f"{path}: holds no usable text: every line of it is blank")
    return usable


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise CalibrationError(f"{path}: is a directory; name one file of JSON lines or plain text")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CalibrationError(f"{path}: cannot be read: {error}") from error
    if not data:
        raise CalibrationError(f"{path}: is empty; expected JSON lines or plain text")
    if len(data) > MAX_FILE_BYTES:
        raise CalibrationError(
            f"{path}: is larger than {MAX_FILE_BYTES // 2**20} MiB; calibration needs some hundred kilobytes, so cut a part out"
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise CalibrationError(f"{path}: is UTF-16 text; save it as UTF-8")
    if (offset := data.find(b"\0")) >= 0:
        raise CalibrationError(f"{path}: is not text: NUL at byte offset {offset}; expected JSON lines or plain text in UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CalibrationError(
            f"{path}, line {line}: not UTF-8: byte 0x{data[error.start]:02x} at byte offset {error.start}; save the file as UTF-8"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _documents(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """Documents of a plain text that are not blank, each with its place."""
    lines: list[str] = []
    first = 1
    for number, line in enumerate([*text.split("\n"), DOCUMENT_MARK], start=1):
        if line.strip() != DOCUMENT_MARK:
            lines.append(line)
            continue
        if document := "\n".join(lines).strip():
            yield document, f"{path}, from line {first}"
        lines, first = [], number + 1


def _objects(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """One JSON object a line. One object that spans lines, as in a ``.json`` file, is taken for one, too."""
    lines = text.split("\n")  # not splitlines(), which would also cut at U+2028 inside a string
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix.lower() == ".json" and numbered and not _is_json(numbered[0][1]):
        yield _json(text, path, 1), f"{path}, line {numbered[0][0]}"
        return
    for number, line in numbered:
        yield _json(line, path, number), f"{path}, line {number}"


def _array(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """The objects of one JSON array."""
    for number, item in enumerate(_json(text, path, 1), start=1):
        yield item, f"{path}, item {number}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise CalibrationError(f"{path}, line {line}: not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; nested too deeply
        raise CalibrationError(f"{path}, line {first_line}: not usable JSON: {error}") from error


class _Record:
    """The fields of one JSON object, with errors that name its place."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self.fields = fields
        self.where = where

    def text(self, name: str) -> str:
        """A field that holds text; an absent one reads as empty."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise CalibrationError(f"{self.where}: {name!r} is of type {type(value).__name__}; expected a string")
        return value or ""

    def first(self, *names: str) -> str:
        """The first of several fields that is not empty."""
        return next((text for text in map(self.text, names) if text), "")

    def objects(self, name: str) -> list[Mapping[str, Any]]:
        """A field that holds a list of objects."""
        value = self.fields[name]
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise CalibrationError(f"{self.where}: {name!r} must be a list of objects, one for each message")
        return value


def _turn(question: str, answer: str) -> list[Message]:
    messages = [{"role": "user", "content": question}]
    return [*messages, {"role": "assistant", "content": answer}] if answer.strip() else messages


def _from_messages(record: _Record) -> list[Message]:
    messages = [{key: item[key] for key in _MESSAGE_FIELDS if key in item} for item in record.objects("messages")]
    last = record.objects("messages")[-1] if messages else {}
    reasoning = last.get("reasoning_content") or last.get("reasoning")
    content = last.get("content") or ""
    if last.get("role") == "assistant" and isinstance(reasoning, str) and isinstance(content, str) and THINK_END not in content:
        messages[-1]["content"] = f"{THINK_START}\n{reasoning}\n{THINK_END}\n\n{content}"
    return messages


def _from_conversations(record: _Record) -> list[Message]:
    messages: list[Message] = []
    for index, item in enumerate(record.objects("conversations")):
        sender = item.get("from")
        if not isinstance(sender, str) or sender not in _SHAREGPT_ROLES:
            known = ", ".join(_SHAREGPT_ROLES)
            raise CalibrationError(f"{record.where}: conversations[{index}].from is {sender!r}; expected one of {known}")
        messages.append({"role": _SHAREGPT_ROLES[sender], "content": item.get("value")})
    return messages


def _from_turns(record: _Record) -> list[Message]:
    turns = record.fields["turns"]
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise CalibrationError(f"{record.where}: 'turns' must be a list of strings, the first of them the question")
    return _turn(turns[0], "")  # the later ones ask about answers that are not there


def _from_instruction(record: _Record) -> list[Message]:
    question = "\n".join(part for part in (record.text("instruction"), record.text("input")) if part.strip())
    return _turn(question, record.text("output"))


#: field that gives a layout away -> its reader; the first one present decides
_LAYOUTS: dict[str, Callable[[_Record], str | list[Message]]] = {
    "messages": _from_messages,
    "conversations": _from_conversations,
    "text": lambda record: record.text("text"),
    "question": lambda record: _turn(record.text("question"), record.text("answer")),
    "prompt": lambda record: _turn(record.text("prompt"), record.first("completion", "response")),
    "turns": _from_turns,
    "instruction": _from_instruction,
}
_KNOWN = (
    '"messages" (OpenAI), "conversations" (ShareGPT), "text", "question" with "answer" (GSM8K), '
    '"prompt" with "completion" or "response", "turns" (MT-Bench), "instruction" with "input" and "output" (Alpaca)'
)


def _sample(fields: Any, source: str, where: str) -> Sample | None:
    """What one JSON object means; ``None`` where its text is blank."""
    if not isinstance(fields, dict):
        raise CalibrationError(f"{where}: is a JSON {type(fields).__name__}; expected an object with one of: {_KNOWN}")
    layout = next((name for name in _LAYOUTS if fields.get(name) is not None), None)
    if layout is None:
        has = ", ".join(map(repr, fields)) or "nothing"
        raise CalibrationError(f"{where}: fits no known layout: it has {has}; expected one of: {_KNOWN}")
    content = _LAYOUTS[layout](_Record(fields, where))
    try:
        if isinstance(content, str):
            sample: Sample = TextSample(source, where, content)
            texts = [content]
        else:
            messages = tuple(normalise_messages(content))
            sample = ChatSample(source, where, messages)
            texts = [message["content"] or "" for message in messages]
    except PaddleDSError as error:
        raise CalibrationError(f"{where}: {layout}: {error.message}") from error
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise CalibrationError(f"{where}: the text holds half of a surrogate pair, which has no UTF-8 form") from error
    return sample if any(text.strip() for text in texts) else None


__all__ = ["ChatSample", "Sample", "TextSample", "TokenSample", "read_samples"]
