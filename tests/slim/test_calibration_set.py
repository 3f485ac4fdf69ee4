"""Samples to sequences: what a sequence holds, that the seed alone decides, and when there is too little."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import CalibrationError, ConfigError
from paddle_ds.text import Tokenizer
from paddle_ds_slim.calibration import (
    MIN_TOKENS,
    CalibrationConfig,
    CalibrationSet,
    ChatSample,
    Sample,
    TextSample,
    TokenSample,
    calibration_set,
    read_samples,
)

SMALL = CalibrationConfig(num_sequences=8, sequence_tokens=64)


def load_tokenizer(directory: Path, **changes: object) -> Tokenizer:
    """The embedded model's tokenizer with other fields in its configuration; ``None`` takes one out."""
    directory.mkdir()
    shutil.copy(EMBEDDED_MODEL / "tokenizer.json", directory)
    config = json.loads((EMBEDDED_MODEL / "tokenizer_config.json").read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
    return Tokenizer.from_dir(directory)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def without_template(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(tmp_path_factory.mktemp("tokenizers") / "plain", chat_template=None)


@pytest.fixture(scope="module")
def without_bos(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(tmp_path_factory.mktemp("tokenizers") / "bare", add_bos_token=False)


def words(count: int, seed: int = 0) -> str:
    """Numbered words in lines of ten, no two of them alike."""
    rng = random.Random(seed)
    lines = (" ".join(f"w{index + offset}x{rng.randint(10, 99)}" for offset in range(10)) for index in range(0, count, 10))
    return "\n".join(lines)


def text(content: str, source: str = "a.txt") -> TextSample:
    return TextSample(source, f"{source}, line 1", content)


def chat(*contents: str) -> ChatSample:
    messages = tuple(
        {"role": role, "content": content} for role, content in zip(itertools.cycle(["user", "assistant"]), contents)
    )
    return ChatSample("c.jsonl", "c.jsonl, line 1", messages)


def decoded(tokenizer: Tokenizer, made: CalibrationSet) -> list[str]:
    return [tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in made.token_ids]


BOS = "<｜begin▁of▁sentence｜>"


def test_long_text_fills_every_sequence_and_each_begins_with_bos(tokenizer: Tokenizer) -> None:
    made = calibration_set(tokenizer, [text(words(4000))], SMALL)
    assert [len(ids) for ids in made.token_ids] == [64] * 8
    assert {ids.dtype for ids in made.token_ids} == {np.dtype(np.int64)}
    assert made.num_tokens == 512
    assert {int(ids[0]) for ids in made.token_ids} == {tokenizer.bos_id}


def test_windows_of_a_long_text_are_runs_of_it_that_do_not_overlap(tokenizer: Tokenizer) -> None:
    whole = words(4000)
    windows = [window.removeprefix(BOS) for window in decoded(tokenizer, calibration_set(tokenizer, [text(whole)], SMALL))]
    starts = sorted((whole.index(window), len(window)) for window in windows)
    assert all(start + length <= following for (start, length), (following, _) in itertools.pairwise(starts))


def test_windows_come_from_all_over_a_long_text(tokenizer: Tokenizer) -> None:
    whole = words(40_000)
    windows = decoded(tokenizer, calibration_set(tokenizer, [text(whole)], CalibrationConfig(16, 64)))
    starts = [whole.index(window.removeprefix(BOS)) for window in windows]
    assert min(starts) < len(whole) / 3
    assert max(starts) > len(whole) * 2 / 3


def test_a_text_without_line_ends_or_spaces_is_cut_all_the_same(tokenizer: Tokenizer) -> None:
    made = calibration_set(tokenizer, [text("一二三四五六七八九十" * 500)], SMALL)
    assert made.num_sequences == 8
    assert all("�" not in window for window in decoded(tokenizer, calibration_set(tokenizer, [text("abc" * 2000)], SMALL)))


def test_a_scarce_text_is_used_to_its_last_token(tokenizer: Tokenizer) -> None:
    whole = words(130)
    made = calibration_set(tokenizer, [text(whole)], CalibrationConfig(100, 64))
    pieces = [piece for sequence in decoded(tokenizer, made) for piece in sequence.split(BOS)]
    assert all(piece in whole for piece in pieces)
    assert collections.Counter("".join("".join(pieces).split())) == collections.Counter("".join(whole.split()))
    assert made.num_sequences < made.config.num_sequences


def test_short_texts_of_one_source_share_a_sequence(tokenizer: Tokenizer) -> None:
    samples = [text(words(10, seed=index)) for index in range(40)]
    first = decoded(tokenizer, calibration_set(tokenizer, samples, CalibrationConfig(4, 256)))[0]
    assert first.count(BOS) > 1
    assert len(tokenizer.encode(first, add_special_tokens=False)) == 256


def test_short_texts_of_two_sources_are_not_mixed(tokenizer: Tokenizer) -> None:
    samples = [text(f"{letter} " * 40, source=letter) for letter in "ab" * 20]
    for sequence in decoded(tokenizer, calibration_set(tokenizer, samples, CalibrationConfig(6, 128))):
        assert ("a" in sequence.replace(BOS, "")) != ("b" in sequence.replace(BOS, ""))


def test_each_conversation_has_a_sequence_of_its_own_and_is_cut_at_its_end(tokenizer: Tokenizer) -> None:
    samples = [chat(f"{index}+1", words(60, seed=index)) for index in range(8)]
    made = calibration_set(tokenizer, samples, SMALL)
    assert made.num_sequences == 8
    rendered = {
        tuple(tokenizer.encode(f"{BOS}<｜User｜>{index}+1<｜Assistant｜>{words(60, seed=index)}")[:64]) for index in range(8)
    }
    assert {tuple(ids.tolist()) for ids in made.token_ids} == rendered


def test_short_conversations_are_not_filled_up(tokenizer: Tokenizer) -> None:
    made = calibration_set(
        tokenizer, [chat("12+7", f"The answer is {index}.") for index in range(40)], CalibrationConfig(40, 512)
    )
    assert made.num_sequences == 40
    assert {sequence.count("<｜User｜>") for sequence in decoded(tokenizer, made)} == {1}


def render(tokenizer: Tokenizer, sample: Sample) -> str:
    others = [TokenSample("t", "t", (65,) * 300)]
    made = calibration_set(tokenizer, [sample, *others], CalibrationConfig(2, 300))
    return next(sequence for sequence in decoded(tokenizer, made) if sequence.startswith(BOS))


def test_a_question_ends_in_what_opens_the_answer(tokenizer: Tokenizer) -> None:
    assert render(tokenizer, chat("12+7")) == f"{BOS}<｜User｜>12+7<｜Assistant｜><think>\n"


def test_an_answer_without_reasoning_is_rendered_as_a_turn(tokenizer: Tokenizer) -> None:
    assert render(tokenizer, chat("12+7", "19")) == f"{BOS}<｜User｜>12+7<｜Assistant｜>19<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("answer", ["<think>\nhm\n</think>\n\n19", "hm\n</think>\n\n19", "\n<think>hm\n</think>\n\n19"])
def test_reasoning_of_the_last_answer_stays_although_the_template_drops_it(tokenizer: Tokenizer, answer: str) -> None:
    expected = f"{BOS}<｜User｜>1+1<｜Assistant｜>2<｜end▁of▁sentence｜><｜User｜>12+7<｜Assistant｜><think>\nhm\n</think>\n\n19"
    assert render(tokenizer, chat("1+1", "<think>\nold\n</think>2", "12+7", answer)) == expected


def test_without_a_template_the_texts_of_a_conversation_are_joined(without_template: Tokenizer) -> None:
    assert render(without_template, chat("12+7", "19")) == f"{BOS}12+7\n19"


def test_a_tokenizer_that_adds_no_bos_gets_none(without_bos: Tokenizer) -> None:
    made = calibration_set(without_bos, [text(words(4000))], SMALL)
    assert [len(ids) for ids in made.token_ids] == [64] * 8
    assert without_bos.bos_id not in np.concatenate(made.token_ids)


def test_token_ids_are_taken_as_they_are(tokenizer: Tokenizer) -> None:
    ids = tuple(range(100, 400))
    made = calibration_set(tokenizer, [TokenSample("self-generated", "sample 1", ids)], CalibrationConfig(1, 256))
    assert made.token_ids[0].tolist() == list(ids[:256])


def mixed_samples(num_chats: int, num_texts: int) -> list[Sample]:
    chats: list[Sample] = [chat(f"{index}+1", words(40, seed=index)) for index in range(num_chats)]
    return [*chats, *(text(words(30 + 40 * index, seed=index)) for index in range(num_texts))]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(4, 12), st.integers(32, 150), st.integers(-(2**70), 2**70), st.integers(4, 12), st.integers(0, 8)
)  # fmt: skip
def test_the_seed_alone_decides(
    tokenizer: Tokenizer, num_sequences: int, sequence_tokens: int, seed: int, num_chats: int, num_texts: int
) -> None:
    config = CalibrationConfig(num_sequences + 4, sequence_tokens, seed)
    samples = [*mixed_samples(num_chats, num_texts), text(words(200, seed=7))]
    first, second = (calibration_set(tokenizer, samples, config) for _ in range(2))
    assert [ids.tolist() for ids in first.token_ids] == [ids.tolist() for ids in second.token_ids]
    assert first.record() == second.record()
    assert all(1 <= len(ids) <= sequence_tokens for ids in first.token_ids)
    assert first.num_sequences <= config.num_sequences
    assert first.num_tokens == sum(len(ids) for ids in first.token_ids) >= MIN_TOKENS


def test_the_choice_of_a_seed_stays_the_same_from_release_to_release(tokenizer: Tokenizer) -> None:
    made = calibration_set(tokenizer, mixed_samples(8, 8), CalibrationConfig(8, 64, seed=3))
    assert made.sha256 == "f5fde5469014408e09e52ec16a9c530cff6f5521cc27b9af4519b862d3f2e666"


def test_another_seed_takes_other_samples(tokenizer: Tokenizer) -> None:
    hashes = {calibration_set(tokenizer, [text(words(4000))], dataclasses.replace(SMALL, seed=seed)).sha256 for seed in range(5)}
    assert len(hashes) == 5


def test_the_hash_is_of_lengths_and_ids(tokenizer: Tokenizer) -> None:
    made = calibration_set(
        tokenizer, [TokenSample("s", "1", (5,) * 300), TokenSample("s", "2", (6,) * 7)], CalibrationConfig(2, 300)
    )
    data = b"".join(np.array([len(ids), *ids], dtype="<i8").tobytes() for ids in made.token_ids)
    assert made.sha256 == hashlib.sha256(data).hexdigest()


def test_fewer_sequences_than_asked_for_are_recorded_and_logged(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "paddle_ds_slim.calibration"):
        made = calibration_set(tokenizer, [text(words(130)), text(words(60), source="b.txt")], CalibrationConfig(50, 128, seed=9))
    assert [record.message for record in caplog.records] == ["calibration.fewer_sequences"]
    record = made.record()
    assert (record["num_sequences_asked"], record["num_sequences"]) == (50, made.num_sequences)
    assert made.num_sequences < 50
    assert (record["seed"], record["sequence_tokens"], record["source"]) == (9, 128, "a.txt, b.txt")


def test_enough_sequences_are_not_warned_of(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    calibration_set(tokenizer, [text(words(4000))], SMALL)
    assert not caplog.records


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param([text("Hello.")], r"a\.txt: \d+ tokens found; at least 256 .* --calib-self-generate 32$", id="short-text"),
        pytest.param([TokenSample("self-generated", "1", (5, 6))], "2 tokens found.* raise --calib-self-generate$", id="answers"),
        pytest.param([], "no sample at all: 0 tokens found", id="nothing"),
        pytest.param([chat("1+1")] * 100, "The samples are short: ask for more than 8 sequences", id="short-chats"),
    ],
)
def test_far_too_little_text_says_what_there_is_and_how_to_get_more(
    tokenizer: Tokenizer, samples: list[Sample], expected: str
) -> None:
    with pytest.raises(CalibrationError, match=expected):
        calibration_set(tokenizer, samples, SMALL)


def test_the_least_that_is_enough(tokenizer: Tokenizer) -> None:
    config = CalibrationConfig(2, 256)
    assert calibration_set(tokenizer, [TokenSample("s", "1", (5,) * MIN_TOKENS)], config).num_tokens == MIN_TOKENS
    with pytest.raises(CalibrationError, match=f"{MIN_TOKENS - 1} tokens found"):
        calibration_set(tokenizer, [TokenSample("s", "1", (5,) * (MIN_TOKENS - 1))], config)


@pytest.mark.parametrize("token_id", [-1, 1024])
def test_ids_of_another_tokenizer_are_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(
        CalibrationError, match=rf"sample 4: token id {token_id} is of another tokenizer; this one has ids 0 to 1023"
    ):
        calibration_set(tokenizer, [TokenSample("s", "sample 4", (5, token_id))], SMALL)


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    strict = load_tokenizer(tmp_path / "strict", chat_template="{{ raise_exception('no system prompt here') }}")
    with pytest.raises(CalibrationError, match=r"c\.jsonl, line 1: .*no system prompt here"):
        calibration_set(strict, [chat("Q")], SMALL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_sequences": 0}, "num_sequences is 0; expected a whole number of at least 1"),
        ({"num_sequences": 2.0}, "num_sequences is 2.0"),
        ({"sequence_tokens": 8}, "sequence_tokens is 8; expected a whole number of at least 16"),
        ({"sequence_tokens": True}, "sequence_tokens is True"),
        ({"seed": "1"}, "seed is '1'; expected a whole number"),
        ({"num_sequences": 3, "sequence_tokens": 64}, "3 sequences of 64 tokens are 192 tokens; at least 256 are needed"),
    ],
)
def test_config_out_of_range(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CalibrationConfig(**fields)  # type: ignore[arg-type]


def test_public_text_through_the_real_tokenizer(shared_data: Path) -> None:
    r1 = Tokenizer.from_dir(shared_data / "r1-distill-qwen")
    made = calibration_set(r1, read_samples(shared_data / "text" / "wikitext2-valid.txt"), CalibrationConfig())
    assert [len(ids) for ids in made.token_ids] == [512] * 32
    assert {int(ids[0]) for ids in made.token_ids} == {151646}
