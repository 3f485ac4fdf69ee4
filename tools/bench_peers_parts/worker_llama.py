"""llama.cpp as a worker, through ``llama_decode`` of the Python bindings.

Argument: ``{"model": GGUF file, "threads": 2, "settings": {…}}``; the settings' names and defaults are ``LLAMA_DEFAULTS``.
``LLAMA_CPP_LIB_PATH`` names the libraries' folder.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib  # type: ignore[import-not-found]

from . import worker
from .worker_settings import LLAMA_DEFAULTS

_GGML_TYPES = {"f16": 1, "q8_0": 8, "bf16": 30}
_BATCH_TOKENS = 2048


class Llama:
    """A model, and a context for each number of streams."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._settings = {**LLAMA_DEFAULTS, **options["settings"]}
        self._threads = int(options["threads"])
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = self._settings["repack"]
        self._model = lib.llama_model_load_from_file(options["model"].encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {options['model']}")
        self._num_ids = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int], Any] = {}
        self._batch = lib.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def describe(self) -> dict[str, Any]:
        return {"settings": self._settings, "system": lib.llama_print_system_info().decode().strip()}

    def measure(self, task: worker.Task) -> worker.Timing:
        context = self._context(task.streams, -(-(task.prompt_tokens + task.new_tokens) // 256) * 256)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        started_s = time.perf_counter()
        rows = [(token, place, stream) for stream, ids in enumerate(task.prompts()) for place, token in enumerate(ids)]
        last = self._decode(context, rows, {(stream + 1) * task.prompt_tokens - 1 for stream in range(task.streams)})
        prefill_s, step_s = time.perf_counter() - started_s, []
        for place in range(task.prompt_tokens, task.prompt_tokens + task.new_tokens - 1):
            started_s = time.perf_counter()
            rows = [(token, place, stream) for stream, token in enumerate(last)]
            last = self._decode(context, rows, set(range(task.streams)))
            step_s.append(time.perf_counter() - started_s)
        return worker.Timing(prefill_s, step_s)

    def _context(self, streams: int, tokens_each: int) -> Any:
        if (streams, tokens_each) not in self._contexts:
            settings, params = self._settings, lib.llama_context_default_params()
            params.n_ctx = streams * tokens_each
            params.n_batch, params.n_ubatch = _BATCH_TOKENS, settings["ubatch"]
            params.n_seq_max = streams
            params.n_threads = params.n_threads_batch = self._threads
            params.flash_attn_type = int(settings["flash_attn"])
            params.type_k = params.type_v = _GGML_TYPES[settings["kv_type"]]
            params.kv_unified = settings["kv_unified"]
            context = lib.llama_init_from_model(self._model, params)
            if not context:
                raise RuntimeError(f"llama.cpp refuses a context with {settings}")
            self._contexts[streams, tokens_each] = context
        return self._contexts[streams, tokens_each]

    def _decode(self, context: Any, rows: list[tuple[int, int, int]], wanted: set[int]) -> list[int]:
        """Run rows of (token, position, sequence); the most probable next token of the ``wanted`` ones."""
        tokens: list[int] = []
        for first in range(0, len(rows), _BATCH_TOKENS):
            part, batch = rows[first : first + _BATCH_TOKENS], self._batch
            batch.n_tokens = len(part)
            for index, (token, place, stream) in enumerate(part):
                batch.token[index], batch.pos[index] = token, place
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, stream
                batch.logits[index] = first + index in wanted
            status = lib.llama_decode(context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode returned {status}")
            for index in range(len(part)):
                if first + index in wanted:
                    logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, index), (self._num_ids,))
                    tokens.append(int(logits.argmax()))
        return tokens


if __name__ == "__main__":
    worker.serve(Llama)
