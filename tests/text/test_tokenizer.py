"""What a tokenizer's files say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders

from paddle_ds.errors import ChatTemplateError, InvalidRequest, TokenizerError
from paddle_ds.text import Tokenizer


def test_text_survives_encoding_and_decoding(any_tokenizer):
    for text in ("hello world", "你好 😀", "  two spaces", "tab\tand\nnewline", ""):
        assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


def test_bos_is_added_once(byte_level):
    plain = byte_level.encode("Hello", add_special_tokens=False)
    assert byte_level.encode("Hello") == [byte_level.bos_id, *plain]
    assert byte_level.encode("<bos>Hello") == [byte_level.bos_id, *plain]


@pytest.mark.parametrize(("add_bos", "num_bos"), [(True, 1), (False, 0)])
@pytest.mark.parametrize("processor_adds", [True, False])
def test_add_bos_token_of_the_config_decides(tmp_path, save_tokenizer, make_backend, processor_adds, add_bos, num_bos):
    backend = make_backend["byte_level"]()
    if not processor_adds:
        backend.post_processor = tokenizers.processors.ByteLevel()
    path = save_tokenizer(tmp_path, backend, {"bos_token": "<bos>", "add_bos_token": add_bos})
    tokenizer = Tokenizer.from_dir(path)
    ids = tokenizer.encode("Hello")
    assert ids.count(tokenizer.bos_id) == num_bos
    assert tokenizer.encode("<bos>Hello").count(tokenizer.bos_id) == 1, "a BOS that the text spells out is kept, once"


def test_bos_comes_from_the_post_processor_where_no_config_names_it(tmp_path, save_tokenizer, make_backend):
    tokenizer = Tokenizer.from_dir(save_tokenizer(tmp_path, make_backend["byte_level"](), config={"bos_token_id": 3}))
    assert tokenizer.token_text(tokenizer.bos_id) == "<bos>"


def test_bos_null_in_the_config_means_none(tmp_path, save_tokenizer, make_backend):
    path = save_tokenizer(tmp_path, make_backend["sentencepiece"](), {"bos_token": None}, generation_config={"bos_token_id": 1})
    assert Tokenizer.from_dir(path).bos_id is None


def test_eos_ids_are_a_union_in_order(tmp_path, save_tokenizer, make_backend):
    files = {"generation_config": {"eos_token_id": [7, 2]}, "config": {"eos_token_id": 9, "bos_token_id": 5}}
    path = save_tokenizer(tmp_path, make_backend["sentencepiece"](), {"eos_token": "</s>", "bos_token": "<s>"}, **files)
    tokenizer = Tokenizer.from_dir(path)
    assert tokenizer.eos_ids == (2, 7, 9)
    assert tokenizer.bos_id == 1


@pytest.mark.parametrize("value", [-1, 10**6, None])
def test_eos_that_no_token_has_is_left_out(tmp_path, save_tokenizer, make_backend, value):
    path = save_tokenizer(tmp_path, make_backend["sentencepiece"](), generation_config={"eos_token_id": value})
    assert Tokenizer.from_dir(path).eos_ids == ()


def test_the_end_token_is_left_out_of_text_even_if_not_marked_special(tmp_path, save_tokenizer, make_backend):
    backend = make_backend["byte_level"]()
    backend.add_tokens(["<end>"])
    tokenizer = Tokenizer.from_dir(save_tokenizer(tmp_path, backend, {"eos_token": "<end>"}))
    ids = tokenizer.encode("Hello<end>")
    assert tokenizer.decode(ids) == "Hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos>Hello<end>"


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path, save_tokenizer, make_backend):
    backend = make_backend["byte_level"]()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_dir(save_tokenizer(tmp_path, backend))
    for text in ("a" * 100, "a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text, add_special_tokens=False)) == len(text)


def test_token_bytes_join_to_the_text(byte_level):
    text = "Hello 你好 😀 café"
    ids = byte_level.encode(text, add_special_tokens=False)
    assert b"".join(byte_level.token_bytes(id_) for id_ in ids) == text.encode()


def test_byte_fallback_tokens_are_single_bytes(sentencepiece):
    ids = sentencepiece.encode("你", add_special_tokens=False)
    assert [sentencepiece.token_bytes(id_) for id_ in ids] == [b" ", b"\xe4", b"\xbd", b"\xa0"]
    assert sentencepiece.token_text(ids[1]) == "\ufffd"


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**40])
def test_an_id_without_a_token_has_no_bytes(any_tokenizer, token_id):
    assert any_tokenizer.token_bytes(token_id) == b""
    assert any_tokenizer.decode([token_id]) == ""


def test_encode_batch_equals_encode(any_tokenizer):
    texts = ["hello", "", "你好 world"]
    assert any_tokenizer.encode_batch(texts) == [any_tokenizer.encode(text) for text in texts]


def test_half_a_surrogate_pair_is_the_clients_error(byte_level):
    with pytest.raises(InvalidRequest, match="surrogate"):
        byte_level.encode("bad \ud800 text")


def test_encode_chat_has_the_bos_of_the_template_only(byte_level):
    ids = byte_level.encode_chat([{"role": "user", "content": "Hello"}])
    assert ids.count(byte_level.bos_id) == 1
    assert byte_level.decode(ids, skip_special_tokens=False) == "<bos><|user|>Hello<|assistant|><think>\n"


def test_encode_chat_without_a_template_is_refused(sentencepiece):
    with pytest.raises(ChatTemplateError, match="no chat template"):
        sentencepiece.encode_chat([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("tokenizer.json", "{", "not a usable tokenizer"),
        ("tokenizer.json", '{"model": {"type": "Nothing"}}', "not a usable tokenizer"),
        ("tokenizer_config.json", "[1]", "expected a JSON object"),
        ("tokenizer_config.json", "{", "not readable as JSON"),
        ("tokenizer_config.json", '{"eos_token": "<nowhere>"}', "not in the vocabulary"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template must be"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "rag", "template": ""}]}', "no template named 'default'"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "does not compile"),
        ("generation_config.json", '{"eos_token_id": "two"}', "neither an id nor a list"),
        ("chat_template.json", "{", "not readable"),
    ],
)
def test_a_broken_file_is_named(tmp_path, save_tokenizer, make_backend, name, content, what):
    path = save_tokenizer(tmp_path, make_backend["sentencepiece"]())
    (path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=what) as caught:
        Tokenizer.from_dir(path)
    assert str(tmp_path) in str(caught.value)


def test_an_absent_directory_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such file"):
        Tokenizer.from_dir(tmp_path / "nothing")


def test_a_decoder_that_is_not_known_is_refused(tmp_path, save_tokenizer, make_backend):
    path = save_tokenizer(tmp_path, make_backend["sentencepiece"](decoders.WordPiece()))
    with pytest.raises(TokenizerError, match=r"cannot decode with .*WordPiece"):
        Tokenizer.from_dir(path)


def test_a_tokenizer_without_decoder_joins_with_spaces(tmp_path, save_tokenizer):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer.from_dir(save_tokenizer(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode("a b a")) == "a b a" == backend.decode([1, 2, 1])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": "J", "chat_template.json": '{"chat_template": "S"}'}, "J"),
        ({"chat_template.json": '{"chat_template": "S"}'}, "S"),
        ({}, "C"),
    ],
)
def test_the_template_beside_the_config_goes_first(tmp_path, save_tokenizer, make_backend, files, expected):
    path: Path = save_tokenizer(tmp_path, make_backend["sentencepiece"](), {"chat_template": "C"})
    for name, content in files.items():
        (path / name).write_text(content, encoding="utf-8")
    assert Tokenizer.from_dir(path).chat_template.render([{"role": "user", "content": "x"}]) == expected


def test_named_templates_choose_by_tools(tmp_path, save_tokenizer, make_backend):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    path = save_tokenizer(tmp_path, make_backend["sentencepiece"](), {"chat_template": named})
    template = Tokenizer.from_dir(path).chat_template
    assert template.render([]) == "D"
    assert template.render([], tools=[json.loads('{"type": "function"}')]) == "T"
