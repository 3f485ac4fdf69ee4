"""Health, models, version, metrics, tokens, /generate, and the log line of a request."""

from __future__ import annotations

import json
import logging

import msgspec
import pytest
from fake_engine import Fail, say
from prometheus_client.parser import text_string_to_metric_families
from tiny_tokenizer import write_tokenizer

from paddle_ds import __version__
from paddle_ds.errors import CheckpointNotFound, ConfigError, EngineDied
from paddle_ds.logs import JsonFormatter
from paddle_ds_serving.sampling import SamplingDefaults


def test_health_says_what_runs(server):
    response = server.get("/health")
    assert response.status_code == 200
    body = response.json
    assert (body["state"], body["version"], body["progress"]) == ("ready", __version__, 1.0)
    assert body["model"]["name"] == "tiny-r1"
    assert body["model"]["quant"] == {"requested": "auto", "running": "w8a8"}
    assert body["model"]["kernels"] == {"int8_gemm": "reference"}
    assert body["model"]["int8_products"] == {"brg_matmul:avx512_core_vnni": 112, "own:avx2": 1}
    assert (body["model"]["vector_isa"], body["model"]["onednn_version"]) == ("avx2", "3.6.2")
    assert body["model"]["isa_caps"] == {"PADDLE_DS_MAX_ISA": "avx2"}
    assert body["model"]["kv_cache"] == {"dtype": "int8", "scales": "static"}
    assert (body["load"]["running"], body["load"]["bad_frames"]) == (2, 2)


@pytest.mark.parametrize(
    ("path", "loading", "failed"),
    [
        ("/health", 503, 503),
        ("/health/ready", 503, 503),
        ("/v2/health/ready", 503, 503),
        ("/health/live", 200, 503),
        ("/v2/health/live", 200, 503),
    ],
)
def test_health_follows_the_engine(server, path, loading, failed):
    assert server.get(path).status_code == 200
    info = server.engine.info
    server.engine.info = msgspec.structs.replace(info, state="loading", progress=0.25, model=None)
    assert server.get(path).status_code == loading
    server.engine.info = msgspec.structs.replace(info, state="failed", model=None, error=CheckpointNotFound("gone").info())
    assert server.get(path).status_code == failed


def test_health_while_loading_tells_the_progress(server):
    server.engine.info = msgspec.structs.replace(server.engine.info, state="loading", progress=0.25, model=None)
    response = server.get("/health")
    assert (response.json["state"], response.json["progress"]) == ("loading", 0.25)
    assert "25%" in response.json["error"]["message"]
    assert response.headers["retry-after"] == "2"


def test_health_without_an_engine(server):
    server.engine.connected = False
    assert server.get("/health").json["state"] == "disconnected"
    assert server.get("/health/live").status_code == 200


def test_models(server):
    listing = server.get("/v1/models").json
    assert listing["object"] == "list"
    (card,) = listing["data"]
    assert card == server.get("/v1/models/tiny-r1").json
    assert (card["id"], card["object"], card["created"]) == ("tiny-r1", "model", 1_700_000_000)
    assert (card["owned_by"], card["root"], card["parent"], card["max_model_len"]) == ("paddle-ds", "tiny-r1", None, 64)
    assert card["default_sampling"] == {"temperature": 0.6, "top_p": 0.95}


def test_model_that_is_not_there(server):
    assert server.get("/v1/models/org/other").json["error"]["code"] == "model_not_found"


def test_version(server):
    assert server.get("/version").json == {"version": __version__}


def test_tokenize_and_back(server):
    body = server.post("/tokenize", {"prompt": "Hello world", "return_token_strs": True}).json
    assert body["count"] == len(body["tokens"]) == 3
    assert body["max_model_len"] == 64
    assert body["token_strs"][1:] == ["Hello", " world"]
    back = server.post("/detokenize", {"tokens": body["tokens"]}).json
    assert back == {"prompt": "<｜begin▁of▁sentence｜>Hello world"}


def test_tokenize_counts_a_conversation_as_chat_does(server):
    messages = [{"role": "user", "content": "Hello"}]
    body = server.post("/tokenize", {"messages": messages}).json
    server.chat(messages=messages)
    assert body["tokens"] == server.engine.last.prompt_ids
    assert body["token_strs"] is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": []}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": [], "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": [], "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": []}, "messages"),
    ],
)
def test_tokenize_refuses(server, body, param):
    response = server.post("/tokenize", body)
    assert response.status_code == 400
    assert response.json["error"]["param"] == param


def test_detokenize_refuses_ids_that_are_none(server):
    assert server.post("/detokenize", {"tokens": [100_000]}).json["error"]["param"] == "tokens"


def test_generate(server):
    body = server.post("/generate", {"prompt": "Hello", "temperature": 0.1, "top_p": 0.5, "top_k": 2, "seed": 1}).json
    assert body["response"] == "Hello world"
    assert body["reasoning"] == "Let me think"
    assert body["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 7
    params = server.engine.last.params
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.1, 0.5, 2, 1)


def test_generate_bounds_the_answer(server):
    body = server.post("/generate", {"prompt": "Hello", "max_length": 2}).json
    assert (body["finish_reason"], body["response"], body["reasoning"]) == ("length", "", "Let me")
    error = server.post("/generate", {"prompt": "Hello", "max_length": 0}).json["error"]
    assert error["param"] == "max_length"
    assert "max_length" in error["message"]


def test_generate_without_template_continues_the_text(make_server, tmp_path):
    server = make_server(say(" world"), directory=write_tokenizer(tmp_path / "plain", template=None))
    body = server.post("/generate", {"prompt": "Hello"}).json
    assert (body["response"], body["reasoning"]) == (" world", None)
    assert len(server.engine.last.prompt_ids) == 2


def samples(server):
    text = server.get("/metrics").data.decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_of_the_engine_are_its_last_figures(server):
    found = samples(server)
    assert found[("paddle_ds:num_requests_running",)] == 2
    assert found[("paddle_ds:num_requests_waiting",)] == 5
    assert found[("paddle_ds:kv_cache_usage_perc",)] == 0.25
    assert found[("paddle_ds:rss_bytes",)] == 123_456
    assert found[("paddle_ds:prompt_tokens_total",)] == 1000
    assert found[("paddle_ds:generation_tokens_total",)] == 2000
    assert found[("paddle_ds:load_seconds",)] == 1.5
    assert found[("paddle_ds:engine_ready",)] == 1
    assert found[("paddle_ds:weight_bytes", ("dtype", "int8"))] == 1000
    assert found[("paddle_ds:fallback_ops_total", ("device", "cpu"), ("op", "int8_gemm"))] == 7


def test_metrics_count_answers_and_responses(server):
    server.chat(n=2)
    server.chat(max_tokens=1, stream=True)
    server.chat(temperature=9)
    server.get("/nothing/at/all")
    found = samples(server)
    success = "paddle_ds:request_success_total"
    assert found[(success, ("finished_reason", "stop"))] == 2
    assert found[(success, ("finished_reason", "length"))] == 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_decode_time"):
        assert found[(f"paddle_ds:{name}_seconds_count",)] == 3
    assert found[("paddle_ds:inter_token_latency_seconds_count",)] == 10
    assert found[("paddle_ds:time_per_output_token_seconds_count",)] == 2
    route = ("route", "/v1/chat/completions")
    assert found[("paddle_ds:http_requests_total", ("method", "POST"), route, ("status", "200"))] == 2
    assert found[("paddle_ds:http_requests_total", ("method", "POST"), route, ("status", "400"))] == 1
    assert found[("paddle_ds:http_requests_total", ("method", "GET"), ("route", "unmatched"), ("status", "404"))] == 1


def test_metrics_of_an_engine_that_is_gone_are_absent(server):
    server.engine.connected = False
    found = samples(server)
    assert found[("paddle_ds:engine_ready",)] == 0
    assert ("paddle_ds:num_requests_running",) not in found


def log_lines(caplog):
    formatter = JsonFormatter()
    lines = [json.loads(formatter.format(record)) for record in caplog.records]
    return [line for line in lines if line["event"] == "http.request"]


def test_request_leaves_one_line_without_its_text(server, caplog):
    with caplog.at_level(logging.INFO, logger="paddle_ds_serving"):
        server.chat(stream=True, messages=[{"role": "user", "content": "secret"}])
    (line,) = log_lines(caplog)
    assert (line["status"], line["stream"], line["finish_reasons"]) == (200, True, "stop")
    assert line["num_output_tokens"] == 7
    assert line["num_prompt_tokens"] == len(server.engine.last.prompt_ids)
    assert line["response_id"].startswith("chatcmpl-")
    assert line["first_token_s"] <= line["total_s"]
    assert "secret" not in json.dumps(line)
    assert "world" not in json.dumps(line)


def test_line_of_a_failed_stream_has_the_error(make_server, caplog):
    server = make_server(say("Let", Fail(EngineDied("lost"))))
    with caplog.at_level(logging.INFO, logger="paddle_ds_serving"):
        server.chat(stream=True)
    (line,) = log_lines(caplog)
    assert (line["error_code"], line["finish_reasons"]) == ("engine_died", "abort")


def test_probes_are_quiet_while_all_is_well(server, caplog):
    with caplog.at_level(logging.INFO, logger="paddle_ds_serving"):
        server.get("/health/live")
        server.get("/metrics")
    assert log_lines(caplog) == []


def test_greedy_models_are_greedy_by_default(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')
    assert SamplingDefaults.from_dir(tmp_path).values == {"temperature": 0.0}


def test_no_generation_config_means_no_defaults(tmp_path):
    assert SamplingDefaults.from_dir(tmp_path).values == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"temperature": 9}', '{"top_p": "x"}'])
def test_broken_generation_config_is_an_error(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match="generation_config"):
        SamplingDefaults.from_dir(tmp_path)
