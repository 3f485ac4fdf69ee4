"""openai-python against the server: what its users see."""

from __future__ import annotations

import asyncio

import openai
import pytest
from fake_engine import Fail, Sleep

from paddle_ds.errors import EngineDied, ServerOverloaded

MESSAGES = [{"role": "user", "content": "Hello"}]


def script(request):
    """The first stop string of a request says how it goes."""
    scene = request.params.stop[0] if request.params.stop else ""
    if scene == "overloaded":
        return [Fail(ServerOverloaded("the queue is full"))]
    if scene == "dies":
        return ["Let", Sleep(0.3), Fail(EngineDied("the engine was lost"))]
    return ["Let me think</think>Hello", " world"]


@pytest.fixture(scope="module")
def url(tmp_path_factory, tokenizer_dir):
    from gunicorn_process import GunicornProcess

    server = GunicornProcess(tmp_path_factory.mktemp("sdk") / "0", tokenizer_dir, script)
    yield server.url
    server.close()


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client):
    answer = client.chat.completions.create(model="tiny-r1", messages=MESSAGES, seed=1)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].message.reasoning_content == "Let me think"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 7
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4
    assert answer._request_id.startswith("req_")


def test_chat_stream(client):
    stream = client.chat.completions.create(
        model="tiny-r1", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "Hello world"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Let me think"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 7
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_stream_helper_assembles_the_answer(client):
    with client.chat.completions.stream(model="tiny-r1", messages=MESSAGES) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == "Hello world"


def test_extensions_go_through_extra_body(client):
    extra = {"top_k": 5, "reasoning_format": "none", "return_token_ids": True}
    answer = client.chat.completions.create(model="tiny-r1", messages=MESSAGES, extra_body=extra)
    assert answer.choices[0].message.content == "Let me think</think>Hello world"
    assert len(answer.choices[0].token_ids) == 6


def test_logprobs(client):
    answer = client.chat.completions.create(model="tiny-r1", messages=MESSAGES, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs.content[0].token == "Let"
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].logprob == -0.5


def test_completions(client):
    answer = client.completions.create(model="tiny-r1", prompt=["a", "b"], n=2, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[3].logprobs.tokens[0] == "Let"
    chunks = list(client.completions.create(model="tiny-r1", prompt="a", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Let me think</think>Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny-r1"]
    assert client.models.retrieve("tiny-r1").owned_by == "paddle-ds"


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"temperature": 9}, openai.BadRequestError, "invalid_request"),
        ({"extra_body": {"guided_json": {}}}, openai.BadRequestError, "unsupported_parameter"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found"),
        ({"stop": "overloaded"}, openai.InternalServerError, "server_overloaded"),
        ({"stop": "overloaded", "stream": True}, openai.InternalServerError, "server_overloaded"),
    ],
)
def test_errors_become_the_right_exceptions(client, fields, kind, code):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "tiny-r1", "messages": MESSAGES, **fields})
    assert caught.value.code == code
    assert caught.value.request_id.startswith("req_")


def test_error_within_a_stream_is_raised_after_what_came_before(client):
    stream = client.chat.completions.create(model="tiny-r1", messages=MESSAGES, stream=True, stop="dies")
    texts = []

    def read():
        for chunk in stream:
            texts.append(getattr(chunk.choices[0].delta, "reasoning_content", None))

    with pytest.raises(openai.APIError) as caught:
        read()
    assert "Let" in texts
    assert caught.value.code == "engine_died"


def test_async_client(url):
    async def talk():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def once():
                stream = await client.chat.completions.create(model="tiny-r1", messages=MESSAGES, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            whole = await client.chat.completions.create(model="tiny-r1", messages=MESSAGES)
            return whole.choices[0].message.content, await asyncio.gather(*[once() for _ in range(8)])

    whole, streamed = asyncio.run(talk())
    assert whole == "Hello world"
    assert streamed == ["Hello world"] * 8


def test_async_errors(url):
    async def fail():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            await client.chat.completions.create(model="tiny-r1", messages=[])

    with pytest.raises(openai.BadRequestError):
        asyncio.run(fail())
