"""The comparison over HTTP: many chats at once, sent by ``paddle-ds bench serve`` to one server after the other."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_ds.text import Tokenizer, normalise_messages

from .engines import SETTLE_S
from .install import Places
from .models import Models
from .servers import Server, llama_server, ours
from .shell import StepFailed, cpu_s
from .table import LLAMA, OURS

NUM_CHATS = 16
PROMPT_TOKENS = 105
NEW_TOKENS = 64
_WORDS = re.findall(
    "[a-z]+",
    "river stone morning table window garden letter silver market winter bridge animal doctor engine island "
    "kitchen lesson mirror number office paper question road school teacher uncle village water yellow corner",
)


def write_prompts(path: Path, tokenizer: Tokenizer, count: int, seed: int) -> None:
    """A ShareGPT-layout file of chats whose prompts, template included, have about ``PROMPT_TOKENS`` tokens.

    Raises:
        StepFailed: the model has no chat template.
    """
    template = tokenizer.chat_template
    if template is None:
        raise StepFailed("the model has no chat template; chats over HTTP cannot be compared")
    chosen = random.Random(seed)
    texts = []
    for _ in range(count):
        words = [chosen.choice(_WORDS)]
        while True:
            prompt = template.render(normalise_messages([{"role": "user", "content": " ".join(words)}]))
            missing = PROMPT_TOKENS - len(tokenizer.encode(prompt, add_special_tokens=False))
            if missing <= 0:
                break
            words += chosen.choices(_WORDS, k=max(1, missing // 4))
        texts.append(" ".join(words))
    entries = [{"conversations": [{"from": "human", "value": text}]} for text in texts]
    path.write_text(json.dumps(entries), encoding="utf-8")


def load_server(server: Server, *options: str) -> dict[str, Any]:
    """Run ``paddle-ds bench serve`` against a server; what it measured.

    Raises:
        StepFailed: requests failed.
    """
    command = [sys.executable, "-m", "paddle_ds", "bench", "serve", "--url", server.url, "--ignore-eos", "--json", *options]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        result: dict[str, Any] = json.loads(process.stdout)
    except ValueError as error:
        raise StepFailed(f"bench serve against {server.name}: {process.stderr.strip()[-300:]}") from error
    if result["errors"]:
        raise StepFailed(f"bench serve against {server.name}: {result['errors']}")
    return result


def compare(
    places: Places, models: Models, threads: int, settings: Mapping[str, Mapping[str, Any]], num_rounds: int, *, with_llama: bool
) -> list[dict[str, Any]]:
    """Rounds of ``NUM_CHATS`` chats against both servers, the order turned around in every second one.

    Raises:
        StepFailed: a server did not start, or requests failed.
    """
    tokenizer = Tokenizer.from_dir(models.w8a8)
    rounds: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        kv_tokens = str(512 * NUM_CHATS)
        options = ("--max-running-requests", str(NUM_CHATS), "--kv-tokens", kv_tokens, "--max-context-tokens", "4096")
        servers = [stack.enter_context(ours(places, threads, models.w8a8, *options))]
        if with_llama:
            servers.append(stack.enter_context(llama_server(places, models, threads, settings[LLAMA], NUM_CHATS)))
        for number in range(-1, num_rounds):  # round -1 warms up
            rounds.append({})
            for server in servers if number % 2 == 0 else servers[::-1]:
                rounds[-1][server.name] = _one(places, server, servers, tokenizer, number)
            if number >= 0:
                print(f"  round {number + 1}/{num_rounds}: {_brief(rounds[-1])}", flush=True)
    return rounds[1:]


def _one(places: Places, server: Server, servers: list[Server], tokenizer: Tokenizer, number: int) -> dict[str, Any]:
    """One load; ``others_cpu_s`` is what the servers that should sleep took meanwhile."""
    others = [other for other in servers if other is not server]
    before_s = sum(cpu_s(other.process.pid) for other in others)
    prompts = places.work / "prompts.json"
    write_prompts(prompts, tokenizer, NUM_CHATS * 8, seed=number)
    options = ["--dataset", str(prompts), "--seed", str(number + 1), "--num-requests", str(NUM_CHATS)]
    options += ["--concurrency", str(NUM_CHATS), "--max-tokens", str(NEW_TOKENS if number >= 0 else 2)]
    result = load_server(server, *options)
    time.sleep(SETTLE_S)
    return {**result, "others_cpu_s": round(sum(cpu_s(other.process.pid) for other in others) - before_s, 2)}


def _brief(figures: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{name} {each['output_tokens_per_s']:.1f} tokens/s, first token {each['ttft_ms'].get('p50', 0):.0f} ms"
        for name, each in figures.items()
    )


def embedded(places: Places, threads: int, num_rounds: int) -> dict[str, Any]:
    """The embedded model, one stream at a time: output tokens a second from end to end, a figure a round."""
    rates = []
    with ours(places, threads, None) as server:
        options = ["--concurrency", "1", "--num-requests", "8", "--max-tokens", "128"]
        load_server(server, *options)
        for _ in range(num_rounds):
            rates.append(load_server(server, *options)["output_tokens_per_s"])
    print(f"  {OURS}: {rates} tokens/s", flush=True)
    return {"tokens_per_s": rates}
