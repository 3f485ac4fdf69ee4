"""OpenVINO as a worker, on a model that optimum-intel exported.

Argument: ``{"model": {"asym": directory, "sym": directory}, "threads": 2, "settings": {…}}``; the settings' names and
defaults are ``OPENVINO_DEFAULTS``. ``runtime`` is ``stateful``, the model as exported with a batch of all streams, or ``paged``,
the continuous batching of OpenVINO GenAI. ``properties`` go to the CPU plug-in as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]

from . import worker
from .worker_settings import OPENVINO_DEFAULTS


class Stateful:
    """One infer request whose state holds the KV cache."""

    def __init__(self, directory: Path, properties: dict[str, Any], settings: dict[str, Any]) -> None:
        compiled = openvino.Core().compile_model(directory / "openvino_model.xml", "CPU", properties)
        self._request = compiled.create_infer_request()
        self._settings = settings
        wanted = ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION", "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS")
        self._chosen = {name: str(compiled.get_property(name)) for name in wanted}

    def describe(self) -> dict[str, Any]:
        return {"settings": self._settings, "chosen": self._chosen}

    def measure(self, task: worker.Task) -> worker.Timing:
        self._request.reset_state()
        started_s = time.perf_counter()
        last = self._infer(np.asarray(task.prompts(), np.int64), 0)
        prefill_s, step_s = time.perf_counter() - started_s, []
        for place in range(task.prompt_tokens, task.prompt_tokens + task.new_tokens - 1):
            started_s = time.perf_counter()
            last = self._infer(last, place)
            step_s.append(time.perf_counter() - started_s)
        return worker.Timing(prefill_s, step_s)

    def _infer(self, ids: Any, num_before: int) -> Any:
        """The most probable next token of each row, as a column."""
        streams, count = ids.shape
        places = np.arange(num_before, num_before + count, dtype=np.int64)
        self._request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones((streams, num_before + count), np.int64),
                "position_ids": np.tile(places, (streams, 1)),
                "beam_idx": np.arange(streams, dtype=np.int32),
            }
        )
        return self._request.get_tensor("logits").data[:, -1].argmax(-1).astype(np.int64)[:, None]


class Paged:
    """A pipeline with a paged cache, stepped by hand."""

    def __init__(self, directory: Path, properties: dict[str, Any], settings: dict[str, Any]) -> None:
        import openvino_genai  # type: ignore[import-not-found]

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = settings["batch_tokens"]
        scheduler.max_num_seqs = 64
        scheduler.cache_size = 1  # GB
        scheduler.enable_prefix_caching = False
        self._genai = openvino_genai
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(directory), scheduler, "CPU", properties)
        self._settings = settings
        self._num_requests = 0

    def describe(self) -> dict[str, Any]:
        return {"settings": self._settings}

    def measure(self, task: worker.Task) -> worker.Timing:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = task.new_tokens, True, False
        handles = []
        for ids in task.prompts():
            self._num_requests += 1
            tensor = openvino.Tensor(np.asarray([ids], np.int64))
            handles.append(self._pipeline.add_request(self._num_requests, tensor, config))
        prefill_s, step_s = 0.0, []
        while self._pipeline.has_non_finished_requests():
            all_answer = all(handle.can_read() for handle in handles)
            started_s = time.perf_counter()
            self._pipeline.step()
            elapsed_s = time.perf_counter() - started_s
            if all_answer:
                step_s.append(elapsed_s)
            else:
                prefill_s += elapsed_s
        return worker.Timing(prefill_s, step_s)


def load(options: dict[str, Any]) -> worker.Engine:
    """The runtime that the settings name."""
    settings = {**OPENVINO_DEFAULTS, **options["settings"]}
    directory = Path(options["model"][settings["weights"]])
    properties = {"INFERENCE_NUM_THREADS": options["threads"], **settings["properties"]}
    kinds: dict[str, Callable[..., worker.Engine]] = {"stateful": Stateful, "paged": Paged}
    return kinds[settings["runtime"]](directory, properties, settings)


if __name__ == "__main__":
    worker.serve(load)
