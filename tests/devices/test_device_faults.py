"""Faults that are injected into an emulated device: each ends in a named error, and nothing hangs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from devices.on_devices import environ, result, run
from e2e.server import Server, chat_body, serve

#: what a process with a model does, step by step, with the fault that is armed before each step
IN_PROCESS = """
import json, sys
from paddle_ds import LLM, SamplingParams
from paddle_ds.config.engine import EngineConfig, SchedulerConfig
from paddle_ds.errors import PaddleDSError
import emulated_device

scheduler = SchedulerConfig(max_running_requests=4)
config = EngineConfig(device=sys.argv[2], max_context_tokens=128, step_timeout_s=3, scheduler=scheduler)
llm = LLM(config=config)
params = SamplingParams(temperature=0.0, max_tokens=5)
prompts = ["12+7", "What is 2 plus 3?"]

def answers():
    return [output.completions[0].token_ids for output in llm.generate(prompts, params)]

good = answers()
told = {}
for fault in json.loads(sys.argv[1]):
    emulated_device.arm(fault)
    try:
        told[fault] = "same" if answers() == good else "other"
    except PaddleDSError as error:
        told[fault] = f"{error.code}: {error.message}"
    finally:
        emulated_device.release()
    try:
        told[fault + " afterwards"] = "same" if answers() == good else "other"
    except PaddleDSError as error:
        told[fault + " afterwards"] = f"{error.code}: {error.message}"
told["shrunk_steps"] = llm.loaded.engine.counters.shrunk_steps
print(json.dumps(told), flush=True)
import os
os._exit(0)  # a device that is lost may not let the process end in order
"""


def after(*faults: str, type_name: str = "npu") -> dict[str, Any]:
    told: dict[str, Any] = result(IN_PROCESS, json.dumps(faults), f"{type_name}:0", type_name=type_name)
    return told


def test_faults_that_pass_leave_the_engine_alive() -> None:
    told = after("nan:softmax*1")
    assert told["nan:softmax*1"].startswith("internal_error: the model's logits are not finite")
    assert told["nan:softmax*1 afterwards"] == "same"


@pytest.mark.parametrize("fault", ["launch_error:softmax*1", "kernel_error:softmax*1", "lost:softmax@5"])
def test_a_device_that_fails_is_lost_for_good_and_says_so(fault: str) -> None:
    told = after(fault)
    assert told[fault].startswith("device_lost: device npu:0 has failed")
    assert told[f"{fault} afterwards"].startswith("device_lost"), "a device that failed was used again"


def test_a_stuck_stream_ends_in_a_named_error_where_nothing_in_a_step_waits_for_it() -> None:
    """The views of this type share memory (its profile does not turn that off), so a step is queued whole and then asked for."""
    told = after("stuck:softmax*1", type_name="iluvatar_gpu")
    assert told["stuck:softmax*1"].startswith("device_timeout: device iluvatar_gpu:0 has not finished its work within 3 s")
    assert told["stuck:softmax*1 afterwards"].startswith("device_timeout")


def test_a_call_that_hangs_inside_the_devices_run_time_ends_the_process_with_a_trace() -> None:
    # what silu needs is copied to the host, which waits behind the stuck softmax
    done = run(IN_PROCESS, json.dumps(["stuck:softmax*1"]), "npu:0", limit_s=90, kernels="full,-silu")
    assert done.returncode == 1
    assert "Timeout (0:00:06)!" in done.stderr
    assert "model_runner.py" in done.stderr


def test_a_load_that_does_not_fit_says_what_is_missing() -> None:
    program = "from paddle_ds import LLM; LLM(device='npu:0')"
    done = run(program, memory_bytes=1 << 20)
    assert done.returncode == 1
    assert "MemoryPlanError: the model needs" in done.stderr


FULL = IN_PROCESS.replace(
    "    emulated_device.arm(fault)\n", "    llm.loaded.device.empty_cache()\n    emulated_device.arm(fault)\n"
)


def test_memory_that_ends_in_a_step_makes_steps_smaller_and_fails_only_what_does_not_fit_by_itself() -> None:
    """Paddle keeps what the trial steps took, so a full device is felt only once that has been given back."""
    told = result(FULL, json.dumps(["allocation*3", "allocation"]), "npu:0")
    assert told["allocation*3"] == "same", "the step was not computed again"
    assert told["allocation"].startswith("device_out_of_memory: device npu:0 is out of memory")
    assert told["allocation afterwards"] == "same", "the engine did not live on"
    assert told["shrunk_steps"] > 1


CACHE = """
import json
from paddle_ds import LLM, SamplingParams
from paddle_ds.config.engine import CacheConfig, EngineConfig, SchedulerConfig
scheduler = SchedulerConfig(max_running_requests=4, max_batch_tokens=64)
config = EngineConfig(device="npu:0", cache=CacheConfig(max_tokens=65536), scheduler=scheduler)
import paddle_ds.runtime.memory_plan as memory_plan
memory_plan._check = lambda *arguments: None  # a plan that is too hopeful, as for operators that need more than ours
llm = LLM(config=config)
answer = llm.generate("12+7", SamplingParams(temperature=0.0, max_tokens=4))[0].completions[0].token_ids
print(json.dumps([llm.loaded.plan.num_blocks, len(answer), llm.loaded.plan.max_context_tokens]))
"""


def test_a_cache_that_leaves_no_room_for_a_step_is_made_smaller() -> None:
    blocks, num_tokens, _ = result(CACHE, memory_bytes=100 << 20)
    assert 0 < blocks < 65536 // 16
    assert num_tokens == 4


@pytest.fixture
def on_emulated(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in environ().items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def config_file(tmp_path: Path) -> str:
    path = tmp_path / "engine.yaml"
    path.write_text("device: npu:0\nstep_timeout_s: 3\nmax_context_tokens: 256\nscheduler: {max_running_requests: 4}\n")
    return str(path)


def wait_for_metric(server: Server, name: str) -> None:
    """It is read beside the step loop, and told to the workers once a second."""
    end_s = time.monotonic() + 30
    while name not in requests.get(f"{server.url}/metrics", timeout=10).text:
        assert time.monotonic() < end_s, f"{name} does not come"
        time.sleep(0.2)


def engine_pid(server: Server) -> int | None:
    try:
        return server.engine_pid()
    except AssertionError:  # between two lives
        return None


def greedy(server: Server, text: str = "12+7", max_tokens: int = 12) -> requests.Response:
    body = chat_body(text, temperature=0, max_tokens=max_tokens)
    return requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def test_over_http_a_device_answers_as_the_cpu_does(tmp_path: Path, on_emulated: pytest.MonkeyPatch) -> None:
    with serve(tmp_path, "--device", "npu:0", "--max-context-tokens", "256") as server:
        told = greedy(server).json()["choices"][0]["message"]
        health = server.health()[1]
        wait_for_metric(server, "paddle_ds:device_memory_used_bytes")
    (tmp_path / "cpu").mkdir()
    with serve(tmp_path / "cpu", "--max-context-tokens", "256") as server:
        assert greedy(server).json()["choices"][0]["message"] == told
    assert "int8_gemm" in json.dumps(health)


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        ("lost:softmax@700", {"device_lost", "engine_died", "engine_unavailable"}),
        ("stuck:softmax@700", {"device_timeout", "engine_died"}),
    ],
)
def test_a_server_whose_device_fails_tells_its_clients_and_comes_back(
    fault: str, codes: set[str], tmp_path: Path, on_emulated: pytest.MonkeyPatch
) -> None:
    on_emulated.setenv("EMULATED_DEVICE_FAULT", fault)
    with serve(tmp_path, "--config", config_file(tmp_path)) as server:
        first = server.engine_pid()
        for _ in range(60):
            response = greedy(server)
            if response.status_code != 200:
                break
        assert response.status_code in (500, 503), "the fault did not come"
        assert response.json()["error"]["code"] in codes
        while (second := engine_pid(server)) in (first, None):
            time.sleep(0.2)
        server.wait_ready()
        assert engine_pid(server) == second
        assert greedy(server).status_code == 200
