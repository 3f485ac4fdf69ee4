"""The same checkpoint on the CPU, on plain Paddle and on emulated devices under several names: the same greedy answers."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from devices.on_devices import result

PROMPTS = ["What is 2 plus 3?", "12+7", "Seven apples and nine pears are", "你好"]

ANSWERS = """
import functools, json, sys
from paddle_ds import LLM, SamplingParams
import emulated_device
device, quant, plain, prompts, num_tokens = json.loads(sys.argv[1])
if plain:
    import paddle_ds.engine.build as build
    build.choose = functools.partial(build.choose, only="reference")
llm = LLM(device=device, quant=quant, max_context_tokens=256)
params = SamplingParams(temperature=0.0, max_tokens=num_tokens)
outputs = llm.generate(prompts, params)
chat = llm.chat([{"role": "user", "content": "12+7"}], params)[0]
loaded = llm.loaded
told = {
    "answers": [output.completions[0].token_ids for output in outputs] + [chat.completions[0].token_ids],
    "kernels": loaded.kernels,
    "weights": loaded.weight_bytes,
    "products": loaded.int8_products,
    "name": loaded.device.name,
}
if device != "cpu":
    counts = [emulated_device.counters(index) for index in (0, 1)]
    told["violations"] = sum(each.violations for each in counts)
    told["in_use"] = [each.used_bytes for each in counts]
print(json.dumps(told))
"""


@functools.cache
def answers(
    device: str, quant: str = "auto", plain: bool = False, prompts: int = 4, tokens: int = 24, **options: Any
) -> dict[str, Any]:
    told: dict[str, Any] = result(ANSWERS, json.dumps([device, quant, plain, PROMPTS[:prompts], tokens]), **options)
    return told


@pytest.fixture(scope="module")
def on_cpu() -> dict[str, Any]:
    return answers("cpu")


def test_plain_paddle_gives_the_same_answers(on_cpu: dict[str, Any]) -> None:
    plain = answers("cpu", plain=True)
    assert set(plain["kernels"].values()) <= {"reference", "not used"}
    assert plain["answers"] == on_cpu["answers"]


@pytest.mark.parametrize(("type_name", "index"), [("npu", 0), ("mlu", 1), ("iluvatar_gpu", 0)])
def test_a_device_gives_the_same_answers_under_every_name(type_name: str, index: int, on_cpu: dict[str, Any]) -> None:
    told = answers(f"{type_name}:{index}", type_name=type_name)
    assert told["answers"] == on_cpu["answers"]
    assert told["name"] == f"{type_name}:{index}"
    assert told["violations"] == 0
    assert told["in_use"][index] > told["weights"]["int8"]
    assert told["in_use"][1 - index] == 0, "the other device was touched"


def test_int8_weights_stay_int8_and_run_on_the_devices_product(on_cpu: dict[str, Any]) -> None:
    told = answers("npu:0", type_name="npu")
    assert told["kernels"]["int8_linear"] == "int8_gemm"
    assert told["products"] == {"int8_gemm": sum(on_cpu["products"].values())}
    assert told["weights"]["int8"] >= on_cpu["weights"]["int8"]
    assert told["weights"]["int8"] < 1.2 * on_cpu["weights"]["int8"]


@pytest.mark.parametrize("quant", ["none", "w8a16"])
def test_other_precisions_run_on_a_device_as_on_plain_paddle(quant: str) -> None:
    short = {"prompts": 1, "tokens": 6}
    assert answers("npu:0", quant, **short)["answers"] == answers("cpu", quant, plain=True, **short)["answers"]


def test_a_kernel_that_gives_wrong_numbers_is_not_taken() -> None:
    told = answers("npu:0", "w8a16", prompts=1, tokens=6, fault="nan:weight_only_linear")
    assert told["kernels"]["weight_only_linear"] == "reference"
    assert told["answers"] == answers("cpu", "w8a16", plain=True, prompts=1, tokens=6)["answers"]


def test_without_any_kernel_of_its_own_a_device_still_answers_by_paddles_fallback(on_cpu: dict[str, Any]) -> None:
    told = answers("npu:0", tokens=6, kernels="none")
    assert told["kernels"]["int8_linear"] == "reference"
    assert told["answers"] == [ids[:6] for ids in on_cpu["answers"]]
