"""Calibration files: every layout, and every way in which a file can be unfit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_ds.errors import CalibrationError
from paddle_ds_slim import calibration_files
from paddle_ds_slim.calibration_files import ChatSample, Sample, TextSample, read_samples


def write(tmp_path: Path, content: str | bytes, name: str = "calib.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_one(tmp_path: Path, fields: dict[str, Any]) -> Sample:
    (sample,) = read_samples(write(tmp_path, json.dumps(fields)))
    return sample


def refused(tmp_path: Path, content: str | bytes, name: str = "calib.jsonl") -> str:
    path = write(tmp_path, content, name)
    with pytest.raises(CalibrationError) as caught:
        read_samples(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.code == "calibration_error"
    return caught.value.message.removeprefix(str(path))


def turns(sample: Sample) -> list[tuple[str, str]]:
    assert isinstance(sample, ChatSample)
    return [(message["role"], message["content"]) for message in sample.messages]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]},
            [("system", "S"), ("user", "Q")],
            id="openai",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}], "weight": 0}]}, [("user", "Q")], id="parts"
        ),
        pytest.param(
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "id": "x"},
            [("user", "Q"), ("assistant", "A")],
            id="sharegpt",
        ),
        pytest.param({"question": "Q", "answer": "A"}, [("user", "Q"), ("assistant", "A")], id="gsm8k"),
        pytest.param({"question": "Q"}, [("user", "Q")], id="question-alone"),
        pytest.param({"prompt": "Q", "completion": "A"}, [("user", "Q"), ("assistant", "A")], id="prompt-completion"),
        pytest.param({"prompt": "Q", "response": "A"}, [("user", "Q"), ("assistant", "A")], id="prompt-response"),
        pytest.param({"question_id": 1, "turns": ["Q", "Q2"]}, [("user", "Q")], id="mt-bench"),
        pytest.param(
            {"instruction": "I", "input": "N", "output": "A"}, [("user", "I\nN"), ("assistant", "A")], id="alpaca-with-input"
        ),
        pytest.param({"instruction": "I", "input": "", "output": "A"}, [("user", "I"), ("assistant", "A")], id="alpaca"),
        pytest.param({"messages": None, "question": "Q"}, [("user", "Q")], id="null-fields-do-not-count"),
    ],
)
def test_layouts_of_conversations(tmp_path: Path, fields: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(read_one(tmp_path, fields)) == expected


def test_text_layout(tmp_path: Path) -> None:
    assert read_one(tmp_path, {"text": "long  text\n", "url": "x"}) == TextSample(
        "calib.jsonl", f"{tmp_path / 'calib.jsonl'}, line 1", "long  text\n"
    )


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_of_the_last_answer_is_kept_and_that_of_earlier_ones_is_not(tmp_path: Path, field: str) -> None:
    answer = {"role": "assistant", "content": "A", field: "hm"}
    question = {"role": "user", "content": "Q"}
    sample = read_one(tmp_path, {"messages": [question, answer, question, answer]})
    assert turns(sample)[1] == ("assistant", "A")
    assert turns(sample)[3] == ("assistant", "<think>\nhm\n</think>\n\nA")


def test_json_lines_skip_blank_lines_and_blank_texts(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"text": "a"}\r\n\r\n{"text": " "}\n{"question": ""}\n{"text": "b\u2028c"}\n')
    samples = read_samples(path)
    assert [sample.text for sample in samples if isinstance(sample, TextSample)] == ["a", "b\u2028c"]
    assert samples[1].where == f"{path}, line 5"


def test_json_array_counts_its_items(tmp_path: Path) -> None:
    path = write(tmp_path, '[\n {"text": "a"},\n {"text": "b"}\n]', "calib.json")
    assert [sample.where for sample in read_samples(path)] == [f"{path}, item 1", f"{path}, item 2"]


def test_json_file_may_hold_one_object_over_several_lines_or_one_a_line(tmp_path: Path) -> None:
    assert len(read_samples(write(tmp_path, '{\n "text": "a"\n}\n', "one.json"))) == 1
    assert len(read_samples(write(tmp_path, '{"text": "a"}\n{"text": "b"}\n', "lines.json"))) == 2


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("calib", '{"question": "Q"}', ChatSample),
        ("calib.data", '[{"question": "Q"}]', ChatSample),
        ("calib", "running text", TextSample),
        ("calib.TXT", '{"question": "Q"}', TextSample),
        ("calib.md", "[link](x)", TextSample),
        ("calib.NDJSON", '{"question": "Q"}', ChatSample),
    ],
)
def test_name_decides_what_a_file_is_and_else_its_first_character(tmp_path: Path, name: str, content: str, kind: type) -> None:
    (sample,) = read_samples(write(tmp_path, content, name))
    assert type(sample) is kind


def test_plain_text_is_one_running_text_blank_lines_included(tmp_path: Path) -> None:
    (sample,) = read_samples(write(tmp_path, " = Title = \r\n\r\nA line.\rAnother.\n\n", "wiki.txt"))
    assert isinstance(sample, TextSample)
    assert sample.text == "= Title = \n\nA line.\nAnother."


def test_document_mark_separates_plain_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "one\n\n1\n<|endoftext|>\n<|endoftext|>\n \ntwo <|endoftext|> 2\n<|endoftext|>\n", "stories.txt")
    samples = read_samples(path)
    assert [sample.text for sample in samples if isinstance(sample, TextSample)] == ["one\n\n1", "two <|endoftext|> 2"]
    assert samples[1].where == f"{path}, from line 6"


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=5))
def test_any_unicode_text_survives_json_lines(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("unicode") / "calib.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    assert [sample.text for sample in read_samples(path) if isinstance(sample, TextSample)] == texts


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param('{"text": "a"}\n\n{"text": "b"\n', ", line 3: not valid JSON: ", id="damaged-line"),
        pytest.param('[{"text": "a"},\n {"text" "b"}]', ", line 2: not valid JSON: ", id="damaged-array"),
        pytest.param('{"text": "a"}\nplain\n', ", line 2: not valid JSON: ", id="plain-line-among-json"),
        pytest.param('{"text": 1' + "0" * 5000 + "}", ", line 1: not usable JSON: ", id="endless-integer"),
        pytest.param("[" * 100_000, ", line 1: not usable JSON: ", id="nested-without-end"),
        pytest.param('{"text": "a"}\n{"body": "b", "id": 1}', ", line 2: fits no known layout: it has 'body', 'id'", id="layout"),
        pytest.param("{}", ", line 1: fits no known layout: it has nothing", id="empty-object"),
        pytest.param('"a"', ", line 1: is a JSON str; expected an object", id="string"),
        pytest.param("[[1]]", ", item 1: is a JSON list; expected an object", id="array-of-arrays"),
        pytest.param('{"text": ["a"]}', ", line 1: 'text' is of type list; expected a string", id="text-no-string"),
        pytest.param('{"question": "Q", "answer": 42}', ", line 1: 'answer' is of type int; expected a string", id="answer"),
        pytest.param('{"messages": "Q"}', ", line 1: 'messages' must be a list of objects", id="messages-no-list"),
        pytest.param('{"messages": []}', ", line 1: messages: messages is empty", id="no-messages"),
        pytest.param(
            '{"messages": [{"role": "king", "content": "Q"}]}', ", line 1: messages: messages[0].role is 'king'", id="role"
        ),
        pytest.param('{"messages": [{"role": "user"}]}', ", line 1: messages: messages[0].content is missing", id="no-content"),
        pytest.param(
            '{"conversations": [{"from": "alien", "value": ""}]}', ", line 1: conversations[0].from is 'alien'", id="from"
        ),
        pytest.param(
            '{"conversations": [{"from": ["gpt"], "value": ""}]}', ", line 1: conversations[0].from is ['gpt']", id="from-list"
        ),
        pytest.param('{"turns": [1]}', ", line 1: 'turns' must be a list of strings", id="turns"),
        pytest.param('{"turns": []}', ", line 1: 'turns' must be a list of strings", id="no-turns"),
        pytest.param('{"text": "\\ud83d"}', ", line 1: the text holds half of a surrogate pair", id="half-a-surrogate-pair"),
        pytest.param('{"text": " "}\n{"question": "", "answer": ""}\n', ": holds no usable text", id="blank-texts"),
        pytest.param("\n \n", ": holds no usable text", id="blank-lines"),
        pytest.param("[]", ": holds no usable text", id="empty-array"),
        pytest.param("", ": is empty", id="empty"),
        pytest.param("a\nb\u00e4".encode("latin-1"), ", line 2: not UTF-8: byte 0xe4 at byte offset 3", id="latin-1"),
        pytest.param("二".encode("utf-16"), ": is UTF-16 text; save it as UTF-8", id="utf-16"),
        pytest.param(b"PK\x03\x04\x14\x00\x08", ": is not text: NUL at byte offset 5", id="binary"),
    ],
)
def test_unfit_file_is_refused_with_its_line(tmp_path: Path, content: str | bytes, expected: str) -> None:
    assert refused(tmp_path, content).startswith(expected)


def test_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    message = refused(tmp_path, '{"body": "b"}')
    assert all(f'"{name}"' in message for name in calibration_files._LAYOUTS)


def test_damaged_json_object_over_several_lines_names_the_damaged_line(tmp_path: Path) -> None:
    assert refused(tmp_path, '{\n "text": "a",\n "id" 1\n}', "one.json").startswith(", line 3: not valid JSON: ")


def test_blank_plain_text_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, " \n<|endoftext|>\n", "blank.txt").startswith(": holds no usable text")


def test_absent_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"absent\.txt: no such file"):
        read_samples(tmp_path / "absent.txt")
    with pytest.raises(CalibrationError, match="is a directory; name one file"):
        read_samples(tmp_path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_samples(write(tmp_path, "x", "file") / "below.txt")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything is readable here")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path, "text")
    path.chmod(0)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_samples(path)


def test_file_over_the_limit_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_files, "MAX_FILE_BYTES", 2**20)
    assert "is larger than 1 MiB" in refused(tmp_path, b"\xff" * (2**20 + 1), "big.txt")
    assert read_samples(write(tmp_path, "a" * 2**20, "fits.txt"))


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("math/gsm8k-train-1500.jsonl", ChatSample, 1500),
        ("prompts/alpaca_zh_demo.json", ChatSample, 1000),
        ("prompts/mt_bench_question.jsonl", ChatSample, 80),
        ("prompts/sharegpt_format_dummy_conversation.json", ChatSample, 500),
        ("stories260k/tinystories_sample.txt", TextSample, 5),
        ("text/clue-small-zh.txt", TextSample, 1),
        ("text/wikitext2-valid.txt", TextSample, 1),
    ],
)
def test_public_files(shared_data: Path, name: str, kind: type, count: int) -> None:
    samples = read_samples(shared_data / name)
    assert len(samples) == count
    assert {type(sample) for sample in samples} == {kind}
