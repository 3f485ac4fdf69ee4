"""What a user of an exported directory would write: reads ``export.json``, runs the program, keeps its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle.inference

Array = npt.NDArray[np.float32]


class Host:
    """One sequence. The rows that no token has filled yet hold NaN, which must be seen nowhere."""

    def __init__(self, directory: Path, capacity: int = 64, *, onednn: bool | None = None) -> None:
        self.description: dict[str, Any] = json.loads((directory / "export.json").read_text(encoding="utf-8"))
        settings = self.description["predictor"]
        config = paddle.inference.Config(*(str(directory / self.description[name]) for name in ("program", "parameters")))
        config.disable_glog_info()
        config.enable_new_executor()
        config.enable_new_ir()
        config.enable_memory_optim()
        if not (settings["onednn"] if onednn is None else onednn):
            config.disable_mkldnn()
        for name in settings["delete_passes"]:
            config.delete_pass(name)
        self._predictor = paddle.inference.create_predictor(config)
        model = self.description["model"]
        shape = (model["num_layers"], capacity, model["num_kv_heads"], model["head_dim"])
        self.keys, self.values = np.full((2, *shape), np.nan, np.float32)
        self.past_length = 0

    def outputs(self, token_ids: Iterable[int]) -> dict[str, Array]:
        """One call; nothing is kept."""
        inputs = {
            "token_ids": np.array(list(token_ids), np.int64),
            "past_length": np.array([self.past_length], np.int64),
            "past_keys": self.keys,
            "past_values": self.values,
        }
        assert self._predictor.get_input_names() == list(inputs) == [entry["name"] for entry in self.description["inputs"]]
        for name, array in inputs.items():
            self._predictor.get_input_handle(name).copy_from_cpu(array)
        self._predictor.run()
        arrays = [self._predictor.get_output_handle(name).copy_to_cpu() for name in self._predictor.get_output_names()]
        return {entry["name"]: array for entry, array in zip(self.description["outputs"], arrays, strict=True)}

    def append(self, token_ids: list[int]) -> Array:
        """One call whose tokens are kept; its logits."""
        outputs = self.outputs(token_ids)
        new = slice(self.past_length, self.past_length + len(token_ids))
        self.keys[:, new], self.values[:, new] = outputs["keys"], outputs["values"]
        self.past_length += len(token_ids)
        return outputs["logits"]


def all_logits(host: Host, pieces: Iterable[list[int]]) -> Array:
    """Of a program that returns all of them, float32 [T, vocab]."""
    return np.concatenate([host.append(piece) for piece in pieces])


def greedy(host: Host, prompt: list[int], num_tokens: int) -> list[int]:
    """The likeliest tokens, one after the other."""
    answer = [int(host.append(prompt)[-1].argmax())]
    while len(answer) < num_tokens:
        answer.append(int(host.append(answer[-1:])[-1].argmax()))
    return answer
