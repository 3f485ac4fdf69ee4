"""``POST /v1/chat/completions``, whole answers."""

from __future__ import annotations

import pytest
from fake_engine import End, say
from tiny_tokenizer import write_tokenizer


def test_answer_has_reasoning_content_and_usage(server):
    response = server.chat()
    assert response.status_code == 200
    body = response.json
    assert body["id"] == "chatcmpl-" + "0" * 24
    assert body["object"] == "chat.completion"
    assert body["created"] == 1_700_000_000
    assert body["model"] == "tiny-r1"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello world", "reasoning_content": "Let me think"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    num_prompt = len(server.engine.last.prompt_ids)
    assert body["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 7,
        "total_tokens": num_prompt + 7,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }


def test_prompt_is_the_rendered_template(server):
    server.chat(messages=[{"role": "system", "content": "2"}, {"role": "user", "content": "Hello"}])
    tokenizer = server.engine.actor.tokenizer
    text = tokenizer.decode(server.engine.last.prompt_ids, skip_special_tokens=False)
    assert text == "<｜begin▁of▁sentence｜>2<｜User｜>Hello<｜Assistant｜><think>\n"


def test_reasoning_of_earlier_turns_is_not_sent_to_the_model(server):
    messages = [
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "Hello", "reasoning_content": "STOP"},
        {"role": "user", "content": [{"type": "text", "text": "The answer"}]},
    ]
    server.chat(messages=messages)
    text = server.engine.actor.tokenizer.decode(server.engine.last.prompt_ids)
    assert text == "<｜User｜>2<｜Assistant｜>Hello<｜User｜>The answer<｜Assistant｜><think>\n"


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("none", {"content": "Let me think</think>Hello world"}),
        ("deepseek", {"content": "Hello world", "reasoning_content": "Let me think"}),
        (
            "deepseek-legacy",
            {"content": "<think>\nLet me think</think>Hello world", "reasoning_content": "Let me think"},
        ),
    ],
)
def test_reasoning_format(server, mode, message):
    answer = server.chat(reasoning_format=mode).json["choices"][0]["message"]
    assert answer == {"role": "assistant", **message}


def test_reasoning_can_be_mirrored_under_the_other_name(server):
    message = server.chat(mirror_reasoning=True).json["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "Let me think"


def test_answer_cut_within_the_reasoning_has_no_content(server):
    choice = server.chat(max_tokens=2).json["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"] == {"role": "assistant", "content": None, "reasoning_content": "Let me"}


def test_answer_without_reasoning_says_null(make_server):
    message = make_server(say("</think>Hello")).chat().json["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hello", "reasoning_content": None}


def test_max_completion_tokens_beats_max_tokens(server):
    assert server.chat(max_tokens=1, max_completion_tokens=3).json["usage"]["completion_tokens"] == 3


def test_stop_string_ends_the_answer_and_the_engines_work(make_server):
    server = make_server(say("</think>Hello", " world", "STOP", "2" * 20))
    body = server.chat(stop="wor").json
    assert body["choices"][0]["message"]["content"] == "Hello "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 3
    assert server.engine.actor.aborted == {server.engine.last.request_id}


def test_stop_string_may_be_included(make_server):
    server = make_server(say("</think>Hello", "STOP", "2"))
    choice = server.chat(stop=["STOP"], include_stop_str_in_output=True).json["choices"][0]
    assert choice["message"]["content"] == "HelloSTOP"


def test_n_answers_come_in_order_with_their_own_seeds(make_server):
    server = make_server(lambda request: ["</think>", str(request.params.seed is not None), "2"])
    body = server.chat(n=3, seed=7).json
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    seeds = [request.params.seed for request in server.engine.actor.submitted]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert len({request.request_id for request in server.engine.actor.submitted}) == 3
    assert body["usage"]["prompt_tokens"] == len(server.engine.last.prompt_ids)


def test_without_a_seed_none_is_made_up(server):
    server.chat(n=2)
    assert [request.params.seed for request in server.engine.actor.submitted] == [None, None]


def test_parameters_reach_the_engine(server):
    server.chat(
        temperature=0.5,
        top_p=0.4,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-1,
        frequency_penalty=1,
        min_tokens=1,
        max_tokens=9,
        seed=-1,
        ignore_eos=True,
        stop=["a", "b"],
        stop_token_ids=[5],
        logit_bias={"7": -100, "8": 1.5},
        skip_special_tokens=False,
    )
    params = server.engine.last.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.4, 3, 0.1)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.5, -1.0, 1.0)
    assert (params.min_tokens, params.max_tokens, params.seed, params.ignore_eos) == (1, 9, -1, True)
    assert (params.stop, params.stop_token_ids, params.skip_special_tokens) == (("a", "b"), (5,), False)
    assert params.logit_bias == {7: -100.0, 8: 1.5}


def test_defaults_come_from_generation_config(server):
    server.chat()
    assert (server.engine.last.params.temperature, server.engine.last.params.top_p) == (0.6, 0.95)
    server.chat(temperature=0, top_p=1)
    assert (server.engine.last.params.temperature, server.engine.last.params.top_p) == (0, 1)


def test_null_is_the_same_as_leaving_a_field_out(server):
    response = server.chat(temperature=None, stop=None, n=None, stream=None, tools=None, logit_bias=None, user=None)
    assert response.status_code == 200
    assert server.engine.last.params.temperature == 0.6


def test_metadata_fields_are_accepted(server):
    fields = {
        "user": "u",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "auto",
        "store": False,
        "parallel_tool_calls": True,
        "verbosity": "medium",
        "modalities": ["text"],
        "response_format": {"type": "text"},
        "tool_choice": "none",
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    assert server.chat(**fields).status_code == 200


def test_logprobs_have_an_entry_a_token(make_server):
    server = make_server(say("</think>", [65, 66]))
    body = server.chat(logprobs=True, top_logprobs=3, return_token_ids=True).json
    choice = body["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == len(choice["token_ids"]) == 3
    tokenizer = server.engine.actor.tokenizer
    assert entries[1]["token"] == tokenizer.token_text(65)
    assert entries[1]["bytes"] == list(tokenizer.token_bytes(65))
    assert entries[1]["logprob"] == -0.5
    assert [top["logprob"] for top in entries[1]["top_logprobs"]] == [-0.5, -1.5, -9999.0]
    assert body["prompt_token_ids"] == server.engine.last.prompt_ids


def test_logprobs_without_top_have_no_alternatives(server):
    entries = server.chat(logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in entries)


def test_logprobs_end_where_a_stop_string_ended(make_server):
    server = make_server(say("</think>Hello", "STOP", "2"), burst=True)
    choice = server.chat(logprobs=True, stop="STOP", return_token_ids=True).json["choices"][0]
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"]) == 3


def test_final_message_can_be_continued(server):
    messages = [{"role": "user", "content": "2"}, {"role": "assistant", "content": "The answer"}]
    server.chat(messages=messages, continue_final_message=True)
    text = server.engine.actor.tokenizer.decode(server.engine.last.prompt_ids)
    assert text == "<｜User｜>2<｜Assistant｜>The answer"


def test_template_variables_can_be_set(server):
    server.chat(chat_template_kwargs={"shout": True}, add_generation_prompt=False)
    assert server.engine.actor.tokenizer.decode(server.engine.last.prompt_ids) == "<｜User｜>Hello!"


@pytest.mark.parametrize("name", ["enable_thinking", "messages", "bos_token"])
def test_template_variables_that_do_nothing_are_refused(server, name):
    error = server.chat(chat_template_kwargs={name: "x"})
    assert error.status_code == 400
    assert error.json["error"]["code"] == "unsupported_parameter"
    assert error.json["error"]["param"] == f"chat_template_kwargs.{name}"


def test_refusal_of_the_template_is_the_clients_error(server):
    response = server.chat(messages=[{"role": "tool", "content": "2"}])
    assert response.status_code == 400
    assert response.json["error"]["code"] == "chat_template_error"


def test_model_without_template_says_so(make_server, tmp_path):
    response = make_server(directory=write_tokenizer(tmp_path / "plain", template=None)).chat()
    assert response.status_code == 400
    assert "/v1/completions" in response.json["error"]["message"]


def test_answer_that_the_engine_aborted_is_no_answer(make_server):
    response = make_server(say("Hello", End("abort"))).chat()
    assert response.status_code == 503
    assert response.json["error"]["code"] == "engine_unavailable"
