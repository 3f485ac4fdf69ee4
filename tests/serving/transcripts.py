"""The streams whose bytes are kept in tests/golden/sse/. ``python tests/serving/transcripts.py`` rewrites the files."""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden" / "sse"
_HELLO = [{"role": "user", "content": "Hello"}]

if __name__ == "__main__":
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root), str(root / "serving"), str(Path(__file__).parent)]

from fake_engine import Fail, FakeEngine, Script, say  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

from paddle_ds import settings  # noqa: E402
from paddle_ds.errors import EngineDied  # noqa: E402
from paddle_ds_serving.app import create_app  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Transcript:
    """One request, and the script of the engine that answers it."""

    path: str
    body: dict[str, Any]
    script: Script


_USAGE = {"stream_options": {"include_usage": True}}
_EMOJI = "</think>2 \N{GRINNING FACE}\N{CJK UNIFIED IDEOGRAPH-4F60}"

TRANSCRIPTS = {
    "chat": Transcript("/v1/chat/completions", {"messages": _HELLO}, say("Let me think</think>Hello world")),
    "chat_usage": Transcript("/v1/chat/completions", {"messages": _HELLO, **_USAGE}, say("Let</think>Hello")),
    "chat_two_choices": Transcript("/v1/chat/completions", {"messages": _HELLO, "n": 2, **_USAGE}, say("Let</think>2")),
    "chat_mirrored": Transcript("/v1/chat/completions", {"messages": _HELLO, "mirror_reasoning": True}, say("Let</think>2")),
    "chat_unsplit": Transcript("/v1/chat/completions", {"messages": _HELLO, "reasoning_format": "none"}, say("Let</think>2")),
    "chat_logprobs_and_ids": Transcript(
        "/v1/chat/completions",
        {"messages": _HELLO, "logprobs": True, "top_logprobs": 1, "return_token_ids": True},
        say("Let</think>2"),
    ),
    "chat_stop_string": Transcript("/v1/chat/completions", {"messages": _HELLO, "stop": "world"}, say("</think>Hello world")),
    "chat_length": Transcript("/v1/chat/completions", {"messages": _HELLO, "max_tokens": 2}, say("Let me think")),
    "chat_characters_over_tokens": Transcript("/v1/chat/completions", {"messages": _HELLO}, say(_EMOJI)),
    "chat_engine_died": Transcript(
        "/v1/chat/completions", {"messages": _HELLO}, say("Let", Fail(EngineDied("the engine was lost")))
    ),
    "completion": Transcript("/v1/completions", {"prompt": "Hello"}, say(" world")),
    "completion_usage": Transcript("/v1/completions", {"prompt": [[65], [65, 66]], **_USAGE}, say("2")),
    "completion_echo": Transcript("/v1/completions", {"prompt": "Hello", "echo": True, "n": 2}, say(" world")),
    "completion_logprobs": Transcript("/v1/completions", {"prompt": "Hello", "logprobs": 2}, say(" world2")),
    "generate": Transcript("/generate", {"prompt": "Hello"}, say("Let me</think>Hello world")),
}


def play(transcript: Transcript, tokenizer_dir: Path) -> bytes:
    """The bytes of the stream."""
    engine = FakeEngine(tokenizer_dir, transcript.script)
    app = create_app(engine, settings.load({}), make_id=lambda: "0" * 24, unix_s=lambda: 1_700_000_000)
    response = app.test_client().post(transcript.path, json={**transcript.body, "stream": True}, buffered=True)
    assert response.status_code == 200, response.data
    # the fingerprint changes with every version; that it is there is all that a transcript has to say
    return re.sub(rb'"fp_[0-9a-f]+"', b'"fp_0"', response.data)


def main() -> None:
    """Rewrite the golden files."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        directory = write_tokenizer(Path(name))
        for key, transcript in TRANSCRIPTS.items():
            (GOLDEN / f"{key}.txt").write_bytes(play(transcript, directory))


if __name__ == "__main__":
    main()
