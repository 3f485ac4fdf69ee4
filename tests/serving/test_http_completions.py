"""``POST /v1/completions``, whole answers."""

from __future__ import annotations

import pytest
from fake_engine import say


@pytest.fixture
def server(make_server):
    return make_server(say(" world2"))


def test_answer(server):
    body = server.complete().json
    assert body["id"] == "cmpl-" + "0" * 24
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": " world2", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["prompt_tokens"] == 2  # begin of sentence, Hello
    assert body["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [("Hello", 1), (["Hello"], 1), (["Hello", "2"], 2), ([65, 66], 1), ([[65], [66, 67]], 2)],
    ids=["text", "list-of-one", "texts", "ids", "lists-of-ids"],
)
def test_forms_of_a_prompt(server, prompt, num_prompts):
    body = server.complete(prompt=prompt).json
    assert [choice["index"] for choice in body["choices"]] == list(range(num_prompts))
    assert len(server.engine.actor.submitted) == num_prompts


def test_ids_are_taken_as_they_are(server):
    server.complete(prompt=[[65], [66, 67]])
    assert [request.prompt_ids for request in server.engine.actor.submitted] == [[65], [66, 67]]


def test_answers_to_one_prompt_are_neighbours(server):
    server.complete(prompt=[[65], [66]], n=2)
    assert [request.prompt_ids for request in server.engine.actor.submitted] == [[65], [65], [66], [66]]


def test_special_tokens_may_be_left_out(server):
    server.complete(add_special_tokens=False)
    assert len(server.engine.last.prompt_ids) == 1


@pytest.mark.parametrize("prompt", [[], [[]], ["Hello", 65], [65, [66]], 5, None, {"text": "Hello"}, [-1], [10**6]])
def test_prompts_that_are_none(server, prompt):
    response = server.complete(prompt=prompt)
    assert response.status_code == 400
    assert response.json["error"]["param"] == "prompt"


def test_empty_text_is_continued_from_the_begin_token(server):
    assert server.complete(prompt="").status_code == 200
    assert server.complete(prompt="", add_special_tokens=False).json["error"]["param"] == "prompt"


def test_echo_gives_the_prompt_back(server):
    assert server.complete(echo=True).json["choices"][0]["text"] == "Hello world2"
    ids = server.engine.actor.tokenizer.encode("Hello")
    assert server.complete(prompt=ids, echo=True).json["choices"][0]["text"] == "Hello world2"


def test_best_of_equal_to_n_is_no_choice_at_all(server):
    assert len(server.complete(n=2, best_of=2).json["choices"]) == 2


def test_logprobs_are_four_lists(server):
    logprobs = server.complete(logprobs=2).json["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [" world", "2"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]
    assert [set(top) for top in logprobs["top_logprobs"]] == [{" world", "!"}, {"2", "!"}]
    assert logprobs["text_offset"] == [0, 6]


def test_logprobs_of_zero_name_the_token_only(server):
    assert server.complete(logprobs=0).json["choices"][0]["logprobs"]["top_logprobs"] == [{" world": -0.5}, {"2": -0.5}]


def test_part_of_a_character_is_named_by_its_bytes(make_server):
    logprobs = make_server(say("\N{CJK UNIFIED IDEOGRAPH-4F60}2")).complete(logprobs=0).json["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xe4", "bytes:\\xbd", "bytes:\\xa0", "2"]
    assert logprobs["text_offset"] == [0, 1, 1, 1]


def test_token_ids_on_request(server):
    choice = server.complete(prompt=[65], return_token_ids=True).json["choices"][0]
    assert choice["prompt_token_ids"] == [65]
    assert server.engine.actor.tokenizer.decode(choice["token_ids"]) == " world2"


def test_text_is_never_split_into_reasoning(make_server):
    text = make_server(say("Let</think>2")).complete().json["choices"][0]["text"]
    assert text == "Let</think>2"
