"""Frames there and back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import ErrorInfo, InvalidRequest, PromptTooLong, from_info
from paddle_ds.ipc.messages import (
    Abort,
    Delta,
    EngineInfo,
    Failed,
    Finished,
    Hello,
    ModelInfo,
    Stats,
    Step,
    Submit,
    TokenLogprob,
    Usage,
    decode_from_engine,
    decode_to_engine,
    encode,
)

ALL_PARAMS = SamplingParams(
    max_tokens=5,
    min_tokens=1,
    temperature=0.5,
    top_p=0.9,
    top_k=3,
    min_p=0.1,
    repetition_penalty=1.5,
    presence_penalty=-1.0,
    frequency_penalty=1.0,
    logit_bias={7: -100.0, 0: 2.5},
    seed=-(2**63),
    stop=("\n", "完"),
    stop_token_ids=(1, 2),
    include_stop_str_in_output=True,
    ignore_eos=True,
    logprobs=20,
    skip_special_tokens=False,
)
TO_ENGINE = [Hello("worker-1"), Submit("a", [1, 2], ALL_PARAMS), Submit("b", [], SamplingParams()), Abort([]), Abort(["a", "b"])]
MODEL = ModelInfo("名", "/m", 64, 100, "auto", "w8a8", {"int8_linear": "native"}, {"int8": 2**40}, 1.5, 1_700_000_000)
CAPS = {"PADDLE_DS_MAX_ISA": "avx2"}
FUSED = msgspec.structs.replace(MODEL, int8_products={"own:avx2": 113}, vector_isa="avx2", onednn_version="3.6.2", isa_caps=CAPS)
FROM_ENGINE = [
    EngineInfo("1-ab", "loading", 5, 0.25),
    EngineInfo("1-ab", "ready", 5, 1.0, MODEL),
    EngineInfo("1-ab", "ready", 5, 1.0, FUSED),
    EngineInfo("1-ab", "failed", 5, error=ErrorInfo("config_error", "wrong", param="x")),
    Step(),
    Step(
        deltas=[Delta("a", [1, 2]), Delta("b", [3], [TokenLogprob(3, -0.5, [(3, -0.5), (4, float("-inf"))])])],
        finished=[Finished("c", "stop", Usage(1, 2, 0, 0.1, 0.2, 0.3), 7), Finished("d", "abort", Usage(1, 0))],
        failed=[Failed("e", PromptTooLong.of(9, None, 8).info())],
    ),
    Stats(1, 2, 3, 4, 2**40, 6, 7, 8, 9, {"x": 1}, 2),
]


@pytest.mark.parametrize("message", TO_ENGINE, ids=lambda message: type(message).__name__)
def test_what_workers_send_arrives_equal(message: Any) -> None:
    assert decode_to_engine(encode(message)) == message


@pytest.mark.parametrize("message", FROM_ENGINE, ids=lambda message: type(message).__name__)
def test_what_the_engine_sends_arrives_equal(message: Any) -> None:
    assert decode_from_engine(encode(message)) == message


def test_an_error_is_itself_on_the_other_side() -> None:
    step = decode_from_engine(encode(FROM_ENGINE[5]))
    assert isinstance(step, Step)
    assert isinstance(from_info(step.failed[0].error), PromptTooLong)


@pytest.mark.parametrize("message", FROM_ENGINE, ids=lambda message: type(message).__name__)
def test_the_engine_does_not_take_its_own_frames(message: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_to_engine(encode(message))


def test_parameters_out_of_range_do_not_decode() -> None:
    frame = msgspec.msgpack.encode({"type": "submit", "request_id": "a", "prompt_ids": [1], "params": {"temperature": 9}})
    with pytest.raises(InvalidRequest, match="temperature"):
        decode_to_engine(frame)


@given(st.binary(max_size=60))
def test_garbage_does_not_decode_to_anything_else(frame: bytes) -> None:
    for decode in (decode_to_engine, decode_from_engine):
        try:
            decode(frame)
        except (msgspec.MsgspecError, ValueError):
            continue
        pytest.fail(f"{frame!r} was taken for a message")
