"""The real files: DeepSeek-R1-Distill-Qwen's tokenizer and template, and a small SentencePiece one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.text import IncrementalDetokenizer, ReasoningSplitter, TextStream, normalise_messages, starts_inside_reasoning

THINK, END_THINK, BOS, EOS = 151648, 151649, 151646, 151643


def test_r1_ids(r1):
    assert (r1.num_tokens, r1.bos_id, r1.eos_ids) == (151665, BOS, (EOS,))
    for token, token_id in (("<think>", THINK), ("</think>", END_THINK), ("<｜User｜>", 151644), ("<｜Assistant｜>", 151645)):
        assert r1.encode(token, add_special_tokens=False) == [token_id]
        assert token_id not in r1.special_ids
        assert r1.decode([token_id]) == token
    assert {BOS, EOS} <= r1.special_ids


def test_r1_template_is_exact_and_has_one_bos(r1):
    messages = [{"role": "user", "content": "Hello, how are you?"}]
    text = r1.chat_template.render(messages)
    assert text == "<｜begin▁of▁sentence｜><｜User｜>Hello, how are you?<｜Assistant｜><think>\n"
    ids = r1.encode_chat(messages)
    assert ids == [BOS, 151644, 9707, 11, 1246, 525, 498, 30, 151645, THINK, 198]
    assert starts_inside_reasoning(text)


def test_r1_template_drops_earlier_thoughts(r1):
    messages = normalise_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "<think>\nadd\n</think>\n\n2", "reasoning_content": "add"},
            {"role": "user", "content": [{"type": "text", "text": "and </think> 2+2?"}]},
        ]
    )
    text = r1.chat_template.render(messages)
    assert text == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>1+1?<｜Assistant｜>\n\n2<｜end▁of▁sentence｜>"
        "<｜User｜>and </think> 2+2?<｜Assistant｜><think>\n"
    )
    assert starts_inside_reasoning(text), "the tag in the user's text says nothing"


def test_r1_template_continues_a_final_message(r1):
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>\nLet me "}]
    text = r1.chat_template.render(messages, continue_final_message=True)
    assert text.endswith("<｜Assistant｜><think>\nLet me ")
    assert starts_inside_reasoning(text)


def test_r1_template_renders_tool_calls(r1):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "call f"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    text = r1.chat_template.render(normalise_messages(messages))
    assert '<｜tool▁sep｜>f\n```json\n{"a": 1}\n```' in text
    assert text.endswith("<｜tool▁output▁begin｜>42<｜tool▁output▁end｜><｜tool▁outputs▁end｜>")
    assert not starts_inside_reasoning(text)


def test_r1_answer_is_split_token_by_token(r1):
    prompt = r1.encode_chat([{"role": "user", "content": "hi"}])
    answer = "Okay, 你好 👋\n</think>\n\nHello! 😀"
    stream = TextStream(r1, SamplingParams(), prompt_ids=prompt, reasoning=ReasoningSplitter(True))
    for token_id in r1.encode(answer, add_special_tokens=False):
        delta = stream.push([token_id])
        assert "\ufffd" not in delta.reasoning + delta.content
    stream.finish(EOS)
    assert (stream.reasoning_text, stream.content_text) == ("Okay, 你好 👋", "Hello! 😀")
    thought = r1.encode("Okay, 你好 👋\n</think>", add_special_tokens=False)
    assert stream.num_reasoning_tokens == len(thought)
    assert stream.num_tokens == len(r1.encode(answer, add_special_tokens=False)) + 1


@pytest.mark.parametrize("name", ["wikitext2-valid.txt", "clue-small-zh.txt"])
@pytest.mark.parametrize("which", ["r1-distill-qwen", "stories260k"])
def test_real_text_streams_to_what_the_library_decodes(shared_data, request, which, name):
    tokenizer = request.getfixturevalue("r1" if which.startswith("r1") else "stories")
    text = (shared_data / "text" / name).read_text(encoding="utf-8")[:8000]
    ids = tokenizer.encode(text)
    stream = IncrementalDetokenizer(tokenizer)
    streamed = "".join([stream.push([id_]) for id_ in ids]) + stream.flush()
    library = tokenizers.Tokenizer.from_file(str(Path(shared_data) / which / "tokenizer.json"))
    assert streamed == tokenizer.decode(ids) == library.decode(ids)


def test_stories_tokenizer(stories, shared_data):
    assert (stories.num_tokens, stories.bos_id, stories.eos_ids) == (512, 1, (2, 1))
    assert stories.chat_template is None
    ids = [int(word) for word in (shared_data / "stories260k" / "greedy_reference_ids.txt").read_text().split()]
    assert stories.decode(ids).startswith("Once upon a time")
    assert stories.encode(stories.decode(ids[:20])) == ids[:20]
