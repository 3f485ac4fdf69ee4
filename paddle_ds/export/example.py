"""Continue a prompt, token by token, with the program in this directory.

    pip install paddlepaddle numpy tokenizers
    python example.py "1 + 2 =" --max-tokens 32

Paddle-DS is not needed. ``export.json`` says what the program takes and gives.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle registers custom operators twice and warns of each

import numpy as np
import paddle.inference
from tokenizers import Tokenizer  # type: ignore[import-untyped]

HERE = Path(__file__).resolve().parent


class Program:
    """The program, and the keys and values of one sequence of up to ``capacity`` tokens."""

    def __init__(self, directory: Path, description: dict[str, Any], capacity: int, num_threads: int) -> None:
        if description["library"]:
            from paddle.utils.cpp_extension import load_op_meta_info_and_register_op

            load_op_meta_info_and_register_op(str(directory / description["library"]))
        config = paddle.inference.Config(str(directory / description["program"]), str(directory / description["parameters"]))
        config.disable_glog_info()
        config.set_cpu_math_library_num_threads(num_threads)
        config.enable_new_executor()
        config.enable_new_ir()
        config.enable_memory_optim()  # after the two above: alone it fails on a program in this format
        if not description["predictor"]["onednn"]:
            config.disable_mkldnn()
        for name in description["predictor"]["delete_passes"]:
            config.delete_pass(name)
        self._predictor = paddle.inference.create_predictor(config)
        model = description["model"]
        rows = (model["num_layers"], capacity, model["num_kv_heads"], model["head_dim"])
        self._keys = np.zeros(rows, np.float32)
        self._values = np.zeros(rows, np.float32)
        self._past_length = 0

    def step(self, token_ids: list[int]) -> Any:
        """Append tokens; the logits of what follows, float32 [vocab] (or [tokens, vocab] if exported so)."""
        inputs = {
            "token_ids": np.array(token_ids, np.int64),
            "past_length": np.array([self._past_length], np.int64),
            "past_keys": self._keys,
            "past_values": self._values,
        }
        for name, array in inputs.items():
            self._predictor.get_input_handle(name).copy_from_cpu(array)
        self._predictor.run()
        outputs = [self._predictor.get_output_handle(name).copy_to_cpu() for name in self._predictor.get_output_names()]
        logits, keys, values = outputs
        new = slice(self._past_length, self._past_length + len(token_ids))
        self._keys[:, new] = keys
        self._values[:, new] = values
        self._past_length += len(token_ids)
        return logits


def main() -> None:
    """Read the prompt from the command line, print what the model makes of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    description = json.loads((HERE / "export.json").read_text(encoding="utf-8"))
    tokens = description["tokens"]
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    prompt = tokenizer.encode(given.prompt).ids
    first = tokens["prompt_begins_with"]
    if first is not None and prompt[:1] != [first]:
        prompt = [first, *prompt]
    capacity = min(len(prompt) + given.max_tokens, description["model"]["max_context_tokens"])
    program = Program(HERE, description, capacity, given.threads)
    answer: list[int] = []
    new = prompt
    while len(prompt) + len(answer) < capacity:
        logits = program.step(new).reshape(-1, description["model"]["vocab_size"])[-1]
        best = int(np.argmax(logits[: tokens["num_tokens"]]))  # higher ids are padding
        if best in tokens["eos_token_ids"]:
            break
        answer.append(best)
        new = [best]
    print(tokenizer.decode(answer))


if __name__ == "__main__":
    main()
