"""The shortest way from text to text, on the oldest Paddle too: a chat with the embedded model."""

from __future__ import annotations

import pytest

from paddle_ds import LLM, SamplingParams


@pytest.mark.floor
def test_embedded_model_reasons_and_ends_its_answer() -> None:
    messages = [{"role": "user", "content": "12+7"}]
    (output,) = LLM(num_threads=1).chat(messages, SamplingParams(temperature=0, max_tokens=200), progress=False)
    (completion,) = output.completions
    assert completion.finish_reason in {"stop", "length"}
    assert completion.reasoning
    assert completion.token_ids
