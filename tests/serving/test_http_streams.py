"""Server-sent events."""

from __future__ import annotations

import threading

import msgspec
import pytest
from fake_engine import Fail, Gate, Sleep, say
from transcripts import GOLDEN, TRANSCRIPTS, play

from paddle_ds.errors import EngineDied, ServerOverloaded


def events(response):
    """The JSON of each event; comments are left out."""
    frames = response.data.decode().split("\n\n")
    assert frames.pop() == ""
    bodies = [frame.removeprefix("data: ") for frame in frames if not frame.startswith(":")]
    assert bodies.pop() == "[DONE]"
    return [msgspec.json.decode(body) for body in bodies]


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_stream_is_the_golden_transcript_byte_for_byte(name, tokenizer_dir):
    assert play(TRANSCRIPTS[name], tokenizer_dir) == (GOLDEN / f"{name}.txt").read_bytes()


def test_no_golden_transcript_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == set(TRANSCRIPTS)


def test_headers_of_a_stream(server):
    headers = server.chat(stream=True).headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers


def test_stream_and_whole_answer_say_the_same(server):
    whole = server.chat().json["choices"][0]["message"]
    chunks = events(server.chat(stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == whole["reasoning_content"]


def test_tokens_that_wait_go_out_as_one_event(make_server):
    chunks = events(make_server(burst=True).chat(stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Let me think"},
        {"content": "Hello world"},
        {},
    ]


def test_choices_that_wait_together_stay_apart(make_server):
    chunks = events(make_server(burst=True).chat(stream=True, n=2))
    texts = {0: "", 1: ""}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "Hello world", 1: "Hello world"}


def test_silence_is_filled_with_pings(make_server):
    server = make_server(say("Let", Sleep(0.5), "</think>2"), environ={"PADDLE_DS_SSE_PING_S": "0.05"})
    response = server.chat(stream=True)
    assert b": ping\n\n" in response.data
    assert events(response)[-1]["choices"][0]["finish_reason"] == "stop"


def test_silence_before_the_first_token_is_filled_with_pings(make_server):
    server = make_server(say(Sleep(0.5), "</think>2"), environ={"PADDLE_DS_SSE_PING_S": "0.05"})
    data = server.chat(stream=True).data
    assert data.startswith(b'data: {"id"')  # the role comes first, pings after it
    assert b": ping\n\n" in data


def test_error_before_the_first_token_is_a_status(make_server):
    response = make_server(say(Fail(ServerOverloaded("full")))).chat(stream=True)
    assert response.status_code == 503
    assert response.json["error"]["code"] == "server_overloaded"
    assert response.headers["retry-after-ms"] == "500"


def test_error_after_the_first_token_is_an_event_and_the_others_are_aborted(make_server):
    never = threading.Event()

    def script(request):
        return ["Let", Fail(EngineDied("lost"))] if request.request_id.endswith("-1") else ["Let", "2" * 40, Gate(never)]

    server = make_server(script)
    response = server.chat(stream=True, n=2)
    assert events(response)[-1] == {
        "error": {"message": "lost", "type": "unavailable_error", "param": None, "code": "engine_died"}
    }
    assert {request.request_id for request in server.engine.actor.submitted if request.request_id.endswith("-0")} <= (
        server.engine.actor.aborted
    )


def test_tokens_that_came_before_an_error_are_not_lost(make_server):
    first = threading.Event()

    def script(request):
        yield "Let"
        first.wait(10)
        yield " me"
        yield Fail(EngineDied("lost"))

    server = make_server(script)
    response = server.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "2"}], "stream": True})
    first.set()
    chunks = events(response)
    assert [chunk["choices"][0]["delta"].get("reasoning_content") for chunk in chunks[:-1]] == [None, "Let", " me"]
    assert chunks[-1]["error"]["code"] == "engine_died"
    response.close()


def test_error_that_is_known_before_anything_was_sent_is_a_status(make_server):
    response = make_server(say("Let", Fail(EngineDied("lost"))), burst=True).chat(stream=True)
    assert response.status_code == 503


def test_client_that_closes_early_aborts_the_generation(make_server):
    server = make_server(say("Let", Gate(threading.Event())))
    response = server.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "2"}], "stream": True})
    assert next(iter(response.response)).startswith(b"data: ")
    response.close()
    assert server.engine.actor.aborted == {server.engine.last.request_id}


def test_client_that_closes_before_reading_aborts_the_generation(make_server):
    server = make_server(say("Let", Gate(threading.Event())))
    body = {"messages": [{"role": "user", "content": "2"}], "stream": True}
    server.client.post("/v1/chat/completions", json=body).close()
    assert server.engine.actor.aborted == {server.engine.last.request_id}


def test_stream_options_need_a_stream(server):
    response = server.chat(stream_options={"include_usage": True})
    assert response.status_code == 400
    assert response.json["error"]["param"] == "stream_options"


def test_include_obfuscation_false_is_what_happens_anyway(server):
    assert server.chat(stream=True, stream_options={"include_obfuscation": False}).status_code == 200
