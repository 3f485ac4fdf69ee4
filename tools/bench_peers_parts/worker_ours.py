"""Paddle-DS as a worker: the engine in this process, without HTTP.

Argument: ``{"model": directory, "threads": 2, "settings": fields of EngineConfig}``.
"""

from __future__ import annotations

import time
from typing import Any

from paddle_ds import LLM, SamplingParams
from paddle_ds.config.engine import EngineConfig, from_mapping

from . import worker


class Ours:
    """The engine that ``paddle-ds serve`` runs, stepped by hand."""

    def __init__(self, options: dict[str, Any]) -> None:
        fields = {
            "cache": {"max_tokens": 4096},
            **options["settings"],
            "model": options["model"],
            "num_threads": options["threads"],
        }
        self._loaded = LLM(config=from_mapping(EngineConfig, fields, "settings of ours")).loaded
        self._num_requests = 0

    def describe(self) -> dict[str, Any]:
        return {"quant": self._loaded.recipe.name, "kernels": self._loaded.kernels, "weight_bytes": self._loaded.weight_bytes}

    def measure(self, task: worker.Task) -> worker.Timing:
        engine = self._loaded.engine
        params = SamplingParams(temperature=0, max_tokens=task.new_tokens, ignore_eos=True)
        for ids in task.prompts():
            self._num_requests += 1
            engine.add(f"peers-{self._num_requests}", ids, params)
        prefill_s, step_s = 0.0, []
        answering: set[str] = set()
        while engine.has_work:
            all_answer = len(answering) == task.streams
            started_s = time.perf_counter()
            progress = engine.step()
            elapsed_s = time.perf_counter() - started_s
            if progress.failed:
                raise progress.failed[0].error
            answering |= {token.request.request_id for token in progress.tokens}
            if not all_answer:
                prefill_s += elapsed_s
            elif len(progress.tokens) == task.streams:
                step_s.append(elapsed_s)
        return worker.Timing(prefill_s, step_s)


if __name__ == "__main__":
    worker.serve(Ours)
