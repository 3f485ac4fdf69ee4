"""The offline model: batches, streams, several calls at once, errors."""

from __future__ import annotations

import pytest

from paddle_ds import LLM, SamplingParams
from paddle_ds.config.engine import CacheConfig, EngineConfig
from paddle_ds.errors import ConfigError, InvalidRequest, PromptTooLong
from paddle_ds.kernels import native

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(num_threads=1)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_one_conversation_and_a_list_of_them(llm: LLM) -> None:
    alone = llm.chat(user("12+7"), GREEDY)
    both = llm.chat([user("12+7"), user("3+4")], GREEDY)
    assert alone[0].completions == both[0].completions
    assert "19" in both[0].text
    assert "7" in both[1].text


def test_a_streamed_chat_adds_up_to_the_whole_one(llm: LLM) -> None:
    whole = llm.chat(user("81-46"), GREEDY)[0]
    deltas = list(llm.stream_chat(user("81-46"), GREEDY))
    assert "".join(delta.content for delta in deltas) == whole.text
    assert "".join(delta.reasoning for delta in deltas) == whole.reasoning


def test_two_streams_side_by_side_do_not_mix(llm: LLM) -> None:
    pairs = list(zip(llm.stream_chat(user("12+7"), GREEDY), llm.stream_chat(user("22+7"), GREEDY), strict=False))
    first = "".join(left.reasoning for left, _ in pairs)
    second = "".join(right.reasoning for _, right in pairs)
    assert first.startswith("12+")
    assert second.startswith("22+")


def test_a_stream_can_stay_open_while_another_call_runs(llm: LLM) -> None:
    stream = llm.stream_chat(user("12+7"), GREEDY)
    pieces = [next(stream)]
    assert "7" in llm.chat(user("3+4"), GREEDY)[0].text
    pieces += list(stream)
    assert "".join(piece.content for piece in pieces) == "12 + 7 = 19"


def test_a_stream_that_is_left_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream_chat(user("12+7"), SamplingParams(temperature=0, ignore_eos=True))
    next(stream)
    stream.close()
    pool = llm.loaded.engine.scheduler.pool
    assert not llm.loaded.engine.has_work
    assert pool.num_free_blocks == pool.num_blocks


def test_n_answers_have_seeds_of_their_own_and_the_first_is_that_of_one(llm: LLM) -> None:
    params = SamplingParams(temperature=2.0, seed=5, max_tokens=30)
    one = llm.generate("1", params)[0].completions
    four = llm.generate("1", SamplingParams(n=4, temperature=2.0, seed=5, max_tokens=30))[0].completions
    assert four[0] == one[0]
    assert [completion.index for completion in four] == [0, 1, 2, 3]
    assert len({tuple(completion.token_ids) for completion in four}) > 1


def test_stop_strings_end_the_answer_and_are_left_out(llm: LLM) -> None:
    completion = llm.chat(user("12+7"), SamplingParams(temperature=0, stop=("tens",)))[0].completions[0]
    assert completion.finish_reason == "stop"
    assert completion.reasoning is not None
    assert "ones" in completion.reasoning
    assert "tens" not in completion.reasoning


def test_a_bad_prompt_among_good_ones_starts_none(llm: LLM) -> None:
    with pytest.raises(PromptTooLong):
        llm.generate(["1+1", "1 " * 3000], GREEDY)
    with pytest.raises(InvalidRequest, match="2 sampling params for 1"):
        llm.generate("1+1", [GREEDY, GREEDY])
    assert not llm.loaded.engine.has_work


@pytest.mark.skipif(native.why_unavailable() is not None, reason="the reference attention takes any block size")
def test_a_block_size_the_attention_is_not_made_for_is_refused_before_loading() -> None:
    with pytest.raises(ConfigError, match="blocks of 16 tokens"):
        LLM(config=EngineConfig(cache=CacheConfig(block_tokens=8)))
