"""The model's own answers as calibration data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paddle_ds import LLM, SamplingParams
from paddle_ds.config.sampling import derive_seed
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import CalibrationError, InvalidRequest, PromptTooLong
from paddle_ds.text import Tokenizer
from paddle_ds_slim.calibration import (
    CalibrationConfig,
    ChatSample,
    Sample,
    TextSample,
    TokenSample,
    calibration_set,
    read_samples,
)
from paddle_ds_slim.self_generated import (
    _is_held_out,
    arithmetic_questions,
    default_questions,
    questions_for,
    questions_of,
    self_generate,
)

QUESTIONS = ["12+7", "What is 81 minus 46?", "6乘7等于多少？"]
DATA = Path(self_generate.__code__.co_filename).parent / "data" / "questions.jsonl"


def copy_without_template(directory: Path) -> Path:
    """The embedded model without its chat template."""
    shutil.copytree(EMBEDDED_MODEL, directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["chat_template"]
    path.write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(num_threads=1)


@pytest.fixture(scope="module")
def without_template(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(str(copy_without_template(tmp_path_factory.mktemp("models") / "base")), num_threads=1)


def ids_of(samples: list[Sample]) -> list[tuple[int, ...]]:
    assert all(isinstance(sample, TokenSample) for sample in samples)
    return [sample.token_ids for sample in samples if isinstance(sample, TokenSample)]


def test_a_sample_is_the_prompt_and_the_answer_as_sampled_reasoning_included(llm: LLM) -> None:
    (sample,) = ids_of(self_generate(llm, QUESTIONS, 1, seed=5))
    params = SamplingParams(temperature=0.6, top_p=0.95, seed=5, max_tokens=512)
    (output,) = llm.chat([{"role": "user", "content": "12+7"}], params)
    assert list(sample) == [*output.prompt_ids, *output.completions[0].token_ids]
    text = llm.loaded.tokenizer.decode(sample, skip_special_tokens=False)
    assert text.startswith("<｜begin▁of▁sentence｜><｜User｜>12+7<｜Assistant｜><think>\n")
    assert "</think>" in text


@pytest.mark.parametrize("model", ["llm", "without_template"])
def test_same_seed_gives_the_same_samples_whatever_the_batch(model: str, request: pytest.FixtureRequest) -> None:
    llm = request.getfixturevalue(model)
    six = ids_of(self_generate(llm, QUESTIONS, 6, seed=1, max_new_tokens=40))
    assert ids_of(self_generate(llm, QUESTIONS, 6, seed=1, max_new_tokens=40)) == six
    assert ids_of(self_generate(llm, QUESTIONS, 2, seed=1, max_new_tokens=40)) == six[:2]
    bos = llm.loaded.tokenizer.encode("")
    fifth = llm.loaded.tokenizer.encode_chat([{"role": "user", "content": QUESTIONS[1]}]) if model == "llm" else bos
    (alone,) = llm.generate([fifth], SamplingParams(temperature=0.6, top_p=0.95, seed=derive_seed(1, 4), max_tokens=40))
    assert (*fifth, *alone.completions[0].token_ids) == six[4]


def test_another_seed_gives_other_samples(without_template: LLM) -> None:
    drawn = [ids_of(self_generate(without_template, [], 4, seed=seed, max_new_tokens=30)) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_questions_come_again_with_other_seeds(llm: LLM) -> None:
    samples = ids_of(self_generate(llm, ["hello"], 6, seed=0, temperature=2.0, top_p=1.0, max_new_tokens=40))
    prompt = llm.loaded.tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    assert {sample[: len(prompt)] for sample in samples} == {tuple(prompt)}
    assert len(set(samples)) > 1


def test_a_model_without_a_template_writes_freely_from_bos(without_template: LLM) -> None:
    samples = ids_of(self_generate(without_template, [], 4, seed=0, max_new_tokens=30))
    assert {sample[0] for sample in samples} == {without_template.loaded.tokenizer.bos_id}
    assert len(set(samples)) > 1


def test_an_answer_ends_at_the_end_of_the_context(llm: LLM) -> None:
    limit = llm.loaded.engine.limits.max_context_tokens
    question = "word " * 300
    (sample,) = ids_of(self_generate(llm, [question], 1, seed=0, max_new_tokens=10**6))
    assert len(sample) <= limit
    with pytest.raises(PromptTooLong):
        self_generate(llm, ["x1y2 " * limit], 1, seed=0)


def test_samples_make_a_calibration_set(llm: LLM) -> None:
    samples = self_generate(llm, arithmetic_questions(0, 8), 8, seed=0, max_new_tokens=64)
    made = calibration_set(llm.loaded.tokenizer, samples, CalibrationConfig(8, 128))
    assert made.source == "self-generated"
    assert sorted(tuple(ids.tolist()) for ids in made.token_ids) == sorted(ids[:128] for ids in ids_of(samples))


def test_empty_answers_are_dropped_and_nothing_but_those_is_an_error(tmp_path: Path) -> None:
    # half of all tokens end a text, then all of them
    for name, ending in (("some", list(range(0, 1015, 2))), ("all", list(range(1024)))):
        directory = copy_without_template(tmp_path / name)
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ending}), encoding="utf-8")
    some = LLM(str(tmp_path / "some"), num_threads=1)
    samples = ids_of(self_generate(some, [], 40, seed=0, temperature=2.0, top_p=1.0, max_new_tokens=5))
    assert 0 < len(samples) < 40
    assert min(map(len, samples)) > 1
    with pytest.raises(CalibrationError, match="all of the 3 answers that all generated are empty"):
        self_generate(LLM(str(tmp_path / "all"), num_threads=1), [], 3, seed=0)


def test_unfit_requests(llm: LLM) -> None:
    with pytest.raises(CalibrationError, match="0 self-generated samples asked for"):
        self_generate(llm, QUESTIONS, 0, seed=0)
    with pytest.raises(CalibrationError, match="no question to ask"):
        self_generate(llm, ["", " "], 1, seed=0)
    with pytest.raises(CalibrationError, match="would repeat each other"):
        self_generate(llm, QUESTIONS, 4, seed=0, temperature=0)
    with pytest.raises(InvalidRequest, match="max_tokens"):
        self_generate(llm, QUESTIONS, 1, seed=0, max_new_tokens=0)
    with pytest.raises(InvalidRequest, match="top_p"):
        self_generate(llm, QUESTIONS, 1, seed=0, top_p=2)


def test_greedy_answers_to_different_questions_are_fine(llm: LLM) -> None:
    assert len(self_generate(llm, QUESTIONS, 3, seed=0, temperature=0)) == 3


def test_default_questions_are_even_over_topics_and_languages() -> None:
    records = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    assert len({record["question"] for record in records}) == len(records) == 64
    for start in range(0, 64, 8):  # so is any first part of them
        part = records[start : start + 8]
        assert {(record["topic"], record["language"]) for record in part} == {
            (topic, language) for topic in ("arithmetic", "logic", "code", "knowledge") for language in ("en", "zh")
        }
    assert default_questions() == [record["question"] for record in records]


def test_default_questions_are_a_calibration_file_themselves() -> None:
    assert questions_of(read_samples(DATA)) == default_questions()


def test_questions_of_a_file_are_its_first_user_messages() -> None:
    messages = ({"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "user", "content": "R"})
    samples = [ChatSample("f", "f, line 1", messages), TextSample("f", "f, line 2", "text")]
    assert questions_of(samples) == ["Q"]
    with pytest.raises(CalibrationError, match="f: holds no question to ask"):
        questions_of(samples[1:])


def test_arithmetic_questions_are_different_and_repeatable() -> None:
    many = arithmetic_questions(3, 500)
    assert len(set(many)) == 500
    assert arithmetic_questions(3, 20) == many[:20]
    assert arithmetic_questions(4, 20) != many[:20]


def test_embedded_model_knows_the_arithmetic_questions(llm: LLM) -> None:
    answers = llm.chat(
        [[{"role": "user", "content": question}] for question in arithmetic_questions(0, 24)], SamplingParams(temperature=0)
    )
    declined = [answer.text for answer in answers if "tiny-r1" in answer.text]
    assert not declined


def test_arithmetic_questions_leave_out_what_evaluation_asks() -> None:
    assert _is_held_out("+", 13, 24) is False
    held_out = [(a, b) for a in range(10, 100) for b in range(10, 100) if _is_held_out("+", a, b)]
    assert 300 < len(held_out) < 500  # one in twenty of 8,100
    asked = set(arithmetic_questions(0, 5000))
    assert not asked & {f"{a}+{b}" for a, b in held_out}


def test_a_small_vocabulary_is_asked_sums(shared_data: Path) -> None:
    assert questions_for(Tokenizer.from_dir(EMBEDDED_MODEL), 5, seed=2) == arithmetic_questions(2, 5)
    assert questions_for(Tokenizer.from_dir(shared_data / "r1-distill-qwen"), 5, seed=2) == default_questions()
