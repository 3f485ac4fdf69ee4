"""The content filter: words, patterns and reviewers, before the engine and in answers, however their text is cut into chunks."""

from __future__ import annotations

import itertools
import json
import logging
import random
import re

import pytest
import yaml
from fake_engine import say

from paddle_ds.errors import ConfigError
from paddle_ds_serving.access import watched
from paddle_ds_serving.content_filter import rules
from paddle_ds_serving.content_filter.rules import Reviewer, Stage
from paddle_ds_serving.content_filter.scan import OutputFilter
from paddle_ds_serving.content_filter.words import words_pattern

SECRET = "hunter"


def stage(*patterns: str, words: tuple[str, ...] = (), hold_back: int = 16, reviewers: tuple[Reviewer, ...] = ()) -> Stage:
    compiled = [re.compile(pattern) for pattern in patterns] + ([words_pattern(words)] if words else [])
    return Stage("output", tuple(compiled), reviewers, hold_back)


def stream(rule: Stage, chunks: list[str]) -> tuple[str, bool]:
    """What is sent of a content that comes in these chunks, and whether it matched."""
    hits: list[int] = []
    answer = OutputFilter(rule, lambda: hits.append(1))
    for number, chunk in enumerate(chunks):
        _, _, matched = answer.push("", chunk, number == len(chunks) - 1)
        if matched:
            break
    assert len(hits) == matched
    return answer.content_text, matched


@pytest.fixture
def filtered(make_server, tmp_path):
    """A server with these rules; further options are the server's."""

    def make(content, *script, **options):
        path = tmp_path / "filter.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        environ = {"PADDLE_DS_CONTENT_FILTER_FILE": str(path), **options.pop("environ", {})}
        return make_server(say(*script or ("Let me think</think>Hello world",)), environ=environ, **options)

    return make


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def count(server, which):
    found = re.findall(rf'^paddle_ds:content_filtered_total{{stage="{which}"}} (\S+)', server.get("/metrics").text, re.M)
    return float(found[0]) if found else 0.0


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        (["bomb"], "a BOMB!", True),
        (["bomb"], "bombing", False),
        (["bomb"], "a-bomb", True),
        (["bomb"], "abomb", False),
        (["bomb"], "我bomb你", True),
        (["bomb", "bombing"], "bombing", True),
        (["bombing", "bomb"], "bomb", True),
        (["炸弹"], "做炸弹的", True),
        (["two  words"], "Two\nwords", True),
        (["два"], "двадцать", False),
        (["c++"], "in C++, x", True),
        (["a.c"], "abc", False),
    ],
)
def test_words(words, text, found):
    assert bool(words_pattern(words).search(text)) is found


def test_a_long_list_of_words_is_fast_enough_for_each_token():
    made = random.Random(7)
    words = ["".join(made.choices("abcdefghij", k=8)) for _ in range(5000)]
    pattern = words_pattern(words)
    assert all(pattern.search(f"x {word} y") for word in words[:200])
    assert pattern.search("nothing of that is here") is None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
def test_a_match_over_the_borders_of_chunks_is_never_sent(size):
    text = "one two three hunter2 and more"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    for rule in (stage("hunter\\d"), stage(words=("hunter2",), hold_back=8), stage("\\bh\\w+\\d\\b")):
        assert stream(rule, chunks) == ("one two three ", True)


def test_every_way_to_cut_gives_the_same():
    text = "ab bomb!"
    for rule, wanted in (
        (stage(words=("bomb",), hold_back=5), ("ab ", True)),
        (stage(words=("bom",), hold_back=4), (text, False)),
        (stage("mb$", hold_back=4), (text, False)),
        (stage("b!$", hold_back=4), ("ab bom", True)),
        (stage("^b", hold_back=2), (text, False)),
        (stage("(?<=b )b", hold_back=4), ("ab ", True)),
    ):
        for cuts in itertools.product((False, True), repeat=len(text) - 1):
            chunks = [text[0]]
            for character, cut in zip(text[1:], cuts, strict=True):
                chunks[len(chunks) - 1 :] = [chunks[-1], character] if cut else [chunks[-1] + character]
            assert stream(rule, chunks) == wanted, (rule, chunks)


def test_what_is_held_back_is_bounded():
    answer = OutputFilter(stage("a.*z", hold_back=10), lambda: None)
    sent = 0
    for number in range(200):
        sent += len(answer.push("", "x", False)[1])
        assert number + 1 - sent <= 10
    assert answer.push("", "", True)[1] == "x" * 10


def test_what_may_become_an_earlier_match_is_not_sent_with_a_later_one():
    answer = OutputFilter(stage("abcd(?!e)", "c"), lambda: None)
    assert answer.push("", "-abcd", False) == ("", "-", True)


def test_a_greedy_match_that_goes_on_is_decided():
    answer = OutputFilter(stage("\\d+", hold_back=8), lambda: None)
    pushed = [answer.push("", "1", False) for _ in range(8)]
    assert [matched for _, _, matched in pushed] == [False] * 7 + [True]
    assert "".join(text for _, text, _ in pushed) == ""


def test_reasoning_is_complete_before_content_begins():
    answer = OutputFilter(stage("zzz", hold_back=8), lambda: None)
    assert answer.push("think", "", False) == ("", "", False)
    assert answer.push("", "say", False) == ("think", "", False)
    assert answer.push("", "", True) == ("", "say", False)


def test_a_reviewer_sees_all_text_before_it_is_sent():
    seen: list[str] = []

    def review(which: str, text: str) -> bool:
        assert which == "output"
        seen.append(text)
        return "bad" in text

    rule = stage(hold_back=4, reviewers=(Reviewer("mine", review),))
    assert stream(rule, list("abcdefbadefghijkl")) == ("abcd", True)
    assert seen == ["abcdefba", "efbadefg"]
    for text in ("bad", "abad", "abcdefbad", "abcdefgbad", "abcdefghijkbadno"):
        sent, matched = stream(rule, list(text))
        assert matched
        assert text.startswith(sent)
        assert len(sent) <= text.index("bad")
    assert stream(rule, list("fine text")) == ("fine text", False)


@pytest.mark.parametrize("route", ["chat", "completions", "generate"])
def test_a_prompt_is_refused_before_the_engine_hears_of_it(filtered, route, caplog):
    server = filtered({"input": {"words": [SECRET]}})
    asked = {
        "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": f"Say {SECRET}"}]}),
        "completions": ("/v1/completions", {"prompt": ["fine", f"Say {SECRET}"]}),
        "generate": ("/generate", {"prompt": f"Say {SECRET}"}),
    }[route]
    with caplog.at_level(logging.DEBUG):
        response = server.post(asked[0], asked[1])
    error = response.json["error"]
    assert (response.status_code, error["code"], error["type"]) == (400, "content_filter", "invalid_request_error")
    assert SECRET not in response.text + "".join(str(vars(record)) for record in caplog.records)
    assert server.engine.actor.submitted == []
    assert count(server, "input") == 1
    assert server.post(asked[0], {**asked[1], "stream": True}).status_code == 400


def test_a_prompt_of_token_ids_is_read_too(filtered):
    server = filtered({"input": {"patterns": ["Hello"]}})
    ids = server.post("/tokenize", {"prompt": "Hello"}).json["tokens"]
    assert server.complete(prompt=ids).json["error"]["code"] == "content_filter"


def test_an_answer_is_cut_before_the_match(filtered, caplog):
    server = filtered({"output": {"words": ["world"]}}, "Let me think</think>Hello world and more")
    with caplog.at_level(logging.DEBUG):
        whole = server.chat(return_token_ids=True, logprobs=True).json["choices"][0]
    assert whole["finish_reason"] == "content_filter"
    assert whole["message"]["content"] == "Hello "
    assert whole["message"]["reasoning_content"] == "Let me think"
    assert whole["token_ids"] == []
    assert whole["logprobs"] == {"content": []}
    assert server.engine.actor.aborted
    assert "world" not in "".join(str(vars(record)) for record in caplog.records)
    assert count(server, "output") == 1
    text = server.complete().json["choices"][0]
    assert (text["text"], text["finish_reason"]) == ("Let me think</think>Hello ", "content_filter")
    made = server.post("/generate", {"prompt": "Hello"}).json
    assert (made["response"], made["finish_reason"]) == ("Hello ", "content_filter")


@pytest.mark.parametrize("burst", [False, True])
def test_a_stream_never_has_the_match(filtered, burst):
    server = filtered({"output": {"words": ["world"]}}, "Let me think</think>Hello world and more", burst=burst)
    response = server.chat(stream=True, return_token_ids=True, logprobs=True, stream_options={"include_usage": True})
    chunks = events(response)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hello "
    assert "".join(choice["delta"].get("reasoning_content", "") for choice in choices) == "Let me think"
    assert choices[-1]["finish_reason"] == "content_filter"
    assert not any(choice.get("token_ids") for choice in choices)
    assert "wor" not in response.text
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert count(server, "output") == 1


def test_a_match_in_the_reasoning_ends_the_answer(filtered):
    server = filtered({"output": {"patterns": ["me t"]}})
    choice = server.chat().json["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["reasoning_content"] == "Let "
    assert choice["message"]["content"] is None


def test_an_answer_without_a_match_is_as_without_a_filter(filtered, server):
    with_filter = filtered({"output": {"words": ["nothing"], "patterns": ["zz+"]}})
    for more in ({}, {"return_token_ids": True, "logprobs": True, "top_logprobs": 1}, {"n": 2}):
        assert with_filter.chat(**more).json == server.chat(**more).json
    plain = events(server.chat(stream=True, return_token_ids=True))
    held = events(with_filter.chat(stream=True, return_token_ids=True))
    for name in ("content", "reasoning_content"):
        texts = ["".join(c["choices"][0]["delta"].get(name, "") for c in each) for each in (plain, held)]
        assert texts[0] == texts[1]
    ids = [[i for c in each for i in c["choices"][0].get("token_ids", [])] for each in (plain, held)]
    assert ids[0] == ids[1]


def test_a_kept_answer_is_judged_again(filtered):
    server = filtered({"output": {"words": ["world"]}}, environ={"PADDLE_DS_RESPONSE_CACHE_S": "60"})
    assert [server.chat(temperature=0).json["choices"][0]["message"]["content"] for _ in range(2)] == ["Hello "] * 2


def test_the_file_is_followed_and_a_damaged_one_is_not(filtered, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(watched, "LOOK_S", 0.0)
    path = tmp_path / "filter.yaml"
    server = filtered({"input": {"words": ["alpha"]}})
    assert server.complete(prompt="alpha").status_code == 400
    path.write_text("input: {words: [beta, gamma]}")
    assert server.complete(prompt="alpha").status_code == 200
    assert server.complete(prompt="beta").status_code == 400
    path.write_text("input: {words: [")
    assert server.complete(prompt="beta").status_code == 400
    path.unlink()
    assert server.complete(prompt="beta").status_code == 400
    assert [record.getMessage() for record in caplog.records].count("content_filter.reload_failed") == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("input: {words: [", "filter.yaml"),
        ("[]", "Expected `object`"),
        ("nonsense: 1", "nonsense"),
        ("hold_back: 0", "hold_back is 0"),
        ("output: {patterns: ['(']}", r"output.patterns\[0\]: no regular expression"),
        ("input: {patterns: ['a', 'b*']}", r"input.patterns\[1\]: matches the empty text"),
        ("input: {words: ['  ']}", r"input.words\[0\]"),
        ("input: {reviewers: [missing]}", "no reviewer 'missing'"),
    ],
)
def test_a_server_does_not_start_with_a_damaged_file(filtered, content, problem):
    with pytest.raises(ConfigError, match=problem):
        filtered(content)


class _Point:
    def __init__(self, review):
        self._review = review

    def load(self):
        return self._review


class _Points(dict):
    @property
    def names(self):
        return set(self)


@pytest.fixture
def install_reviewer(monkeypatch):
    def install(review):
        monkeypatch.setattr(rules.importlib.metadata, "entry_points", lambda group: _Points(mine=_Point(review)))

    return install


def test_a_reviewer_of_another_package(filtered, install_reviewer):
    install_reviewer(lambda which, text: "Bye" in text if which == "input" else "world" in text)
    server = filtered({"hold_back": 8, "input": {"reviewers": ["mine"]}, "output": {"reviewers": ["mine"]}})
    assert server.complete(prompt="Bye").json["error"]["code"] == "content_filter"
    choice = server.complete().json["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert "world" not in choice["text"]


@pytest.mark.parametrize("answer", ["raise", "yes", None])
def test_a_reviewer_that_fails_lets_nothing_through(filtered, install_reviewer, answer, caplog):
    def review(which, text):
        if answer == "raise":
            raise ValueError(text)
        return answer

    install_reviewer(review)
    server = filtered({"output": {"reviewers": ["mine"]}})
    response = server.chat()
    assert (response.status_code, response.json["error"]["code"]) == (500, "internal_error")
    assert "'mine'" in response.json["error"]["message"]
    assert "Hello" not in response.text + "".join(str(vars(record)) for record in caplog.records)
    server = filtered({"input": {"reviewers": ["mine"]}})
    assert server.chat().status_code == 500
    assert server.engine.actor.submitted == []
