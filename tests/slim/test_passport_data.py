"""Texts and questions of an evaluation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import CalibrationError
from paddle_ds.text import Tokenizer
from paddle_ds_slim.passport import EvalConfig
from paddle_ds_slim.passport.data import (
    ARITHMETIC,
    BUILT_IN,
    Piece,
    TextData,
    answers_of,
    cut,
    digest,
    greedy_prompts,
    reasons,
    tasks_of,
    texts_of,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from tiny_r1.corpus import ASSISTANT, USER, Corpus
from tiny_r1.evaluation import EVALUATION_SEED, STYLES, SUM_TASKS

BOS = 9


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(EMBEDDED_MODEL)


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_windows_begin_anew_and_stop_at_the_limit() -> None:
    document = [BOS, 1, 2, 3, 4, 5]
    assert cut([document], 4, 100, BOS) == (Piece((BOS, 1, 2, 3)), Piece((BOS, 4, 5)))
    assert cut([document], 4, 4, BOS) == (Piece((BOS, 1, 2, 3)), Piece((BOS, 4)))
    assert cut([document, [BOS, 7]], 99, 100, BOS) == (Piece(tuple(document)), Piece((BOS, 7)))


def test_without_a_bos_windows_are_plain_cuts() -> None:
    assert cut([[1, 2, 3, 4, 5]], 3, 100, None) == (Piece((1, 2, 3)), Piece((4, 5)))
    assert cut([[1, 2, 3, 4]], 3, 100, None) == (Piece((1, 2, 3)),)  # one token alone predicts nothing


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 30])
def test_as_many_tokens_are_predicted_as_asked_for(limit: int) -> None:
    documents = [[BOS, *range(10, 20)], [BOS, *range(30, 40)]]
    assert TextData("", cut(documents, 5, limit, BOS)).num_predicted == min(limit, 20)


def test_of_self_generated_texts_the_answer_is_predicted_and_the_longest_prompt_is_meant() -> None:
    pieces = answers_of([(1, 2, 3, 4, 5), (1, 2, 9, 9)], [(1, 2), (1, 2, 3)], 10, 100)
    assert pieces == (Piece((1, 2, 3, 4, 5), 3), Piece((1, 2, 9, 9), 2))
    assert answers_of([(1, 2, 3, 4, 5), (1, 2, 9, 9)], [(1, 2)], 4, 3) == (Piece((1, 2, 3, 4), 2), Piece((1, 2, 9), 2))


def test_documents_of_a_file_are_encoded_each_on_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "text.txt", "12+7=19", "<|endoftext|>", "3+4=7")
    found = texts_of(tokenizer, EvalConfig(texts={"sums": file}), 512)["sums"]
    assert found.source == "text.txt"
    assert [list(piece.ids) for piece in found.pieces] == [tokenizer.encode("12+7=19"), tokenizer.encode("3+4=7")]


def test_ids_are_one_text_or_several(tokenizer: Tokenizer) -> None:
    config = EvalConfig(texts={"one": [1, 2, 3], "two": [[1, 2], [3, 4]]})
    found = texts_of(tokenizer, config, 512)
    assert found["one"].pieces == (Piece((1, 2, 3)),)
    assert found["two"].pieces == (Piece((1, 2)), Piece((3, 4)))


def test_texts_that_cannot_be_used_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    chat = write(tmp_path / "chat.jsonl", {"messages": [{"role": "user", "content": "hello"}]})
    with pytest.raises(CalibrationError, match=r"chat\.jsonl, line 1: is a conversation"):
        texts_of(tokenizer, EvalConfig(texts={"chat": chat}), 512)
    with pytest.raises(CalibrationError, match="ids of another tokenizer; this one has 0 to 1023"):
        texts_of(tokenizer, EvalConfig(texts={"ids": [1, 5000]}), 512)
    with pytest.raises(CalibrationError, match="fewer than two tokens"):
        texts_of(tokenizer, EvalConfig(texts={"ids": [1]}), 512)


def test_questions_are_rendered_and_answers_taken_from_behind_the_mark(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "gsm.jsonl", {"question": "12+7", "answer": "so\n#### 19"}, {"question": "3+4", "answer": "7"})
    found = tasks_of(tokenizer, EvalConfig(tasks={"gsm": file}))["gsm"]
    assert [item.expected for item in found.items] == ["19", "7"]
    assert list(found.items[0].prompt) == tokenizer.encode_chat([{"role": "user", "content": "12+7"}])


def test_a_limit_picks_questions_by_the_seed_and_keeps_their_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "many.jsonl", *({"question": f"{n}+1", "answer": str(n + 1)} for n in range(50)))

    def picked(seed: int) -> list[int]:
        items = tasks_of(tokenizer, EvalConfig(tasks={"many": file}, task_limit=10, seed=seed))["many"].items
        return [int(item.expected) for item in items]

    assert picked(0) == picked(0) == sorted(picked(0))
    assert len(picked(0)) == 10
    assert picked(0) != picked(1)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"text": "running"}, 'expected one "question" with one "answer"'),
        ({"question": "12+7"}, 'expected one "question" with one "answer"'),
        ({"question": "12+7", "answer": "19 ####"}, "nothing stands behind the '####'"),
    ],
)
def test_tasks_that_are_none_are_refused(tokenizer: Tokenizer, tmp_path: Path, record: dict[str, str], sentence: str) -> None:
    with pytest.raises(CalibrationError, match=rf"task\.jsonl, line 1: {sentence}"):
        tasks_of(tokenizer, EvalConfig(tasks={"task": write(tmp_path / "task.jsonl", record)}))


def test_built_in_sums_are_the_evaluation_set_of_the_embedded_model(tokenizer: Tokenizer) -> None:
    corpus = Corpus(EVALUATION_SEED, held_out=True)
    wanted = []
    for task in SUM_TASKS:
        for style in STYLES:
            for _ in range(4):
                problem = corpus.problem(task)
                question = corpus.sum_of(problem, task, style).prompt.split(USER)[1].split(ASSISTANT)[0]
                wanted.append({"question": question, "answer": str(problem.result)})
    assert [json.loads(line) for line in ARITHMETIC.read_text(encoding="utf-8").splitlines()] == wanted
    found = tasks_of(tokenizer, EvalConfig())
    assert (list(found), found["arithmetic"].source, len(found["arithmetic"].items)) == (["arithmetic"], BUILT_IN, 40)
    assert tasks_of(tokenizer, EvalConfig(tasks={})) == {}


def test_prompts_are_questions_for_a_model_that_chats(tokenizer: Tokenizer) -> None:
    prompts = greedy_prompts(tokenizer, EvalConfig(greedy_prompts=5), {})
    assert len(prompts) == len(set(prompts)) == 5
    assert all(tokenizer.decode(prompt, skip_special_tokens=False).endswith("<think>\n") for prompt in prompts)
    assert reasons(tokenizer)


def test_a_digest_tells_sequences_apart_that_have_the_same_tokens() -> None:
    assert digest([[1, 2], [3]]) != digest([[1], [2, 3]])
    assert digest([[1]], "a", "b") != digest([[1]], "ab")
    assert digest([[1, 2]]) == digest([(1, 2)])
