"""Streaming gives what decoding at once gives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_ds.text import IncrementalDetokenizer
from paddle_ds.text.decoding import parse_decoder

IDS = st.lists(st.integers(0, 310), max_size=40)
TEXT = st.text(st.sampled_from("helo wrdaß好你😀👩\u200d\n\t'"), max_size=40)


def pieces(items, cuts):
    borders = sorted({0, len(items), *(cut % (len(items) + 1) for cut in cuts)})
    return [items[start:end] for start, end in itertools.pairwise(borders)]


def streamed(detokenizer, parts):
    return "".join([detokenizer.push(part) for part in parts]) + detokenizer.flush()


@given(ids=IDS, cuts=st.lists(st.integers(0, 40)), skip=st.booleans())
def test_any_split_of_any_ids_joins_to_decode(any_tokenizer, ids, cuts, skip):
    detokenizer = IncrementalDetokenizer(any_tokenizer, skip_special_tokens=skip)
    assert streamed(detokenizer, pieces(ids, cuts)) == any_tokenizer.decode(ids, skip_special_tokens=skip)


@given(prompt=IDS, ids=IDS)
def test_an_answer_continues_its_prompt(any_tokenizer, prompt, ids):
    known = IncrementalDetokenizer(any_tokenizer).push(prompt)
    answer = streamed(IncrementalDetokenizer(any_tokenizer, prompt_ids=prompt), [[id_] for id_ in ids])
    assert known + answer == any_tokenizer.decode(prompt + ids)


@given(ids=st.lists(st.integers(0, 310), max_size=40), skip=st.booleans())
def test_byte_level_decode_equals_the_library_also_on_ill_formed_bytes(byte_level, ids, skip):
    assert byte_level.decode(ids, skip) == byte_level._backend.decode(ids, skip_special_tokens=skip)


@given(text=TEXT)
def test_decode_of_real_text_equals_the_library(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    assert any_tokenizer.decode(ids) == any_tokenizer._backend.decode(ids)


@given(text=TEXT)
def test_no_push_of_real_text_holds_a_replacement_character(any_tokenizer, text):
    detokenizer = IncrementalDetokenizer(any_tokenizer)
    parts = [detokenizer.push([id_]) for id_ in any_tokenizer.encode(text)]
    assert "\ufffd" not in "".join(parts)
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("text", ["你", "😀", "é"])
def test_a_character_comes_with_its_last_byte(sentencepiece, text):
    detokenizer = IncrementalDetokenizer(sentencepiece, prompt_ids=sentencepiece.encode("a"))
    ids = sentencepiece.encode(text, add_special_tokens=False)[1:]
    parts = [detokenizer.push([id_]) for id_ in ids]
    assert parts == [""] * (len(ids) - 1) + [text]


def test_a_character_cut_off_at_the_end_is_one_replacement_character(byte_level):
    ids = byte_level.encode("a😀", add_special_tokens=False)
    whole = b"".join(map(byte_level.token_bytes, ids))
    assert whole.endswith("😀".encode())
    table = {byte_level.token_bytes(id_): id_ for id_ in range(256)}
    detokenizer = IncrementalDetokenizer(byte_level)
    pushed = [detokenizer.push([table[bytes([byte])]]) for byte in "a😀".encode()[:4]]
    assert pushed == ["a", "", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_the_space_at_the_start_goes_but_not_after_a_prompt(sentencepiece, metaspace):
    for tokenizer in (sentencepiece, metaspace):
        hello = tokenizer.encode("hello", add_special_tokens=False)
        assert tokenizer.token_text(hello[0]) == " hello"
        assert IncrementalDetokenizer(tokenizer).push(hello) == "hello"
        assert IncrementalDetokenizer(tokenizer, prompt_ids=hello).push(hello) == " hello"


def test_special_tokens_are_kept_on_request(byte_level):
    ids = byte_level.encode("Hello")
    assert IncrementalDetokenizer(byte_level, skip_special_tokens=False).push(ids) == "<bos>Hello"
    assert IncrementalDetokenizer(byte_level, keep_ids=frozenset({byte_level.bos_id})).push(ids) == "<bos>Hello"


@settings(max_examples=30)
@given(data=st.binary(max_size=30))
def test_any_bytes_decode_as_python_decodes_them(sentencepiece, data):
    ids = [sentencepiece.token_id(f"<0x{byte:02X}>") for byte in data]
    expected = data.decode("utf-8", "replace")
    assert sentencepiece.decode(ids) == expected.removeprefix(" ")


def test_older_metaspace_decoders_say_add_prefix_space():
    old = b'{"type": "Metaspace", "replacement": "_", "add_prefix_space": false}'
    assert parse_decoder(old, "x").bytes_of("_a", first=True) == b" a"
    new = b'{"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}'
    assert parse_decoder(new, "x").bytes_of("_a", first=True) == b"a"
