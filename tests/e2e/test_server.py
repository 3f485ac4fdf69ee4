"""The whole path with the embedded model: text in over HTTP, text out, many at once, clients that leave."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests

from e2e.server import Server, chat_body, events
from paddle_ds import LLM, SamplingParams


def test_answers_a_sum_with_its_reasoning_apart(server: Server) -> None:
    response = requests.post(f"{server.url}/v1/chat/completions", json=chat_body("12+7", temperature=0), timeout=60)
    message = response.json()["choices"][0]["message"]
    assert "19" in message["content"]
    assert "19" in message["reasoning_content"]
    assert "think>" not in message["content"] + message["reasoning_content"]


@pytest.mark.parametrize(("question", "answer"), [("What is 23 plus 45?", "68"), ("23加45等于多少?", "68"), ("6*7=", "42")])
def test_answers_in_two_languages(server: Server, question: str, answer: str) -> None:
    body = chat_body(question, temperature=0)
    response = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer in response.json()["choices"][0]["message"]["content"]


def test_health_counts_the_layers_by_what_they_run_on(server: Server) -> None:
    model = server.health()[1]["model"]
    assert sum(model["int8_products"].values()) == 4 * 4 + 1
    assert model["isa_caps"] == {}


def test_http_and_python_give_the_same_answer(server: Server) -> None:
    texts = ["12+7", "81-46", "3+4"]
    outputs = LLM(num_threads=1).chat([[{"role": "user", "content": text}] for text in texts], SamplingParams(temperature=0))
    for text, output in zip(texts, outputs, strict=True):
        response = requests.post(f"{server.url}/v1/chat/completions", json=chat_body(text, temperature=0), timeout=60)
        message = response.json()["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == (output.text, output.reasoning)


def test_openai_sdk_streams_and_does_not(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    plain = client.chat.completions.create(model="tiny-r1", messages=[{"role": "user", "content": "12+7"}], temperature=0)
    stream = client.chat.completions.create(
        model="tiny-r1", messages=[{"role": "user", "content": "12+7"}], temperature=0, stream=True
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert streamed == plain.choices[0].message.content
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "hi"}])


def test_same_seed_same_answer_whatever_else_runs(server: Server) -> None:
    body = chat_body("31+48", temperature=1.2, seed=11, max_tokens=60)

    def ask(index: int) -> str:
        other = chat_body(f"{index}+{index}", temperature=1.0, max_tokens=60)
        payload = body if index % 4 == 0 else other
        choice = requests.post(f"{server.url}/v1/chat/completions", json=payload, timeout=120).json()["choices"][0]
        return str(choice["message"]["reasoning_content"]) + str(choice["message"]["content"])

    alone = ask(0)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    assert {answers[index] for index in range(0, 16, 4)} == {alone}


def test_64_concurrent_streams_all_finish(server: Server) -> None:
    def ask(index: int) -> str:
        body = chat_body(f"{index}+{index}", temperature=0, stream=True)
        with requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=120) as response:
            frames = list(events(response))
        assert frames[-1] == "[DONE]"
        return str(frames[-2]["choices"][0]["finish_reason"])  # type: ignore[index]

    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(ask, range(64))) == {"stop"}
    server.wait_idle()


def test_clients_that_leave_midway_free_their_blocks(server: Server) -> None:
    started = threading.Barrier(60)

    def ask(index: int) -> str:
        leaves = index % 2 == 0
        body = chat_body("1+1", temperature=0, stream=True, ignore_eos=True, max_tokens=900 if leaves else 80)
        with requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=120) as response:
            frames = events(response)
            for _ in range(4):
                next(frames)
            started.wait(timeout=60)
            if leaves:
                return "left"
            *_, last = frames
        return str(last)

    with ThreadPoolExecutor(60) as pool:
        ends = list(pool.map(ask, range(60)))
    assert ends.count("left") == 30
    assert ends.count("[DONE]") == 30
    server.wait_idle()


def test_prompt_longer_than_the_context_is_refused_with_figures(server: Server) -> None:
    response = requests.post(f"{server.url}/v1/chat/completions", json=chat_body("1+1 " * 2000), timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "1024" in response.json()["error"]["message"]
