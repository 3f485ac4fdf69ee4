"""The frames, as records. One msgpack map a frame, its kind in the field ``type``.

    worker ──── Hello ──────────────────────────► engine      who I am; answered by EngineInfo
    worker ──── Submit ─────────────────────────► engine      one request for one answer
    worker ──── Abort ──────────────────────────► engine      the client is gone, or a stop string was found
    worker ◄─── EngineInfo ─────────────────────  engine      on Hello, and whenever the state changes
    worker ◄─── Step ───────────────────────────  engine      one frame a step and worker: tokens and endings
    worker ◄─── Stats ──────────────────────────  engine      once a second

Text never enters the engine, tensors never leave it: everything here is integers, floats and short codes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import ErrorInfo

FinishReason = Literal["stop", "length", "abort"]
EngineState = Literal["loading", "ready", "stopping", "failed"]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability (natural logarithm) of a sampled token and of the most probable ones, best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Usage(msgspec.Struct, frozen=True):
    """What a request cost. Times in seconds since the engine received it."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0
    queue_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one request. ``logprobs`` is as long as ``token_ids`` where the request asked for them."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None


class Finished(msgspec.Struct, frozen=True):
    """The good end of a request. ``stop_token_id`` says which id ended it, where one did."""

    request_id: str
    reason: FinishReason
    usage: Usage
    stop_token_id: int | None = None


class Failed(msgspec.Struct, frozen=True):
    """The bad end of a request."""

    request_id: str
    error: ErrorInfo


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First frame of a worker, and again after each reconnection."""

    client: str


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """One request for one answer (``params.n`` is 1; see ``SamplingParams.each_choice``)."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End these requests; each still gets its ``Finished`` with reason ``abort`` unless it had ended before."""

    request_ids: list[str]


class ModelInfo(msgspec.Struct, frozen=True):
    """What an HTTP worker must know of the model."""

    name: str
    #: directory with ``tokenizer.json``, ``tokenizer_config.json``, ``generation_config.json``
    directory: str
    max_context_tokens: int
    vocab_size: int
    #: what was asked for and what runs, such as ``auto`` and ``w8a8``
    requested_quant: str
    quant: str
    #: operator -> implementation that was chosen for it
    kernels: dict[str, str] = {}
    weight_bytes: dict[str, int] = {}
    load_s: float = 0.0
    created: int = 0
    #: what the products of INT8 layers run on, such as ``vnni:avx512`` or ``own:avx2`` -> number of layers
    int8_products: dict[str, int] = {}
    #: variant of the compiled vector loops, and version of oneDNN; empty where neither is used
    vector_isa: str = ""
    onednn_version: str = ""
    #: variable -> value that keeps the compiled operators from the processor's best instruction set
    isa_caps: dict[str, str] = {}
    #: what the KV cache holds, and for ``int8`` whether its scales are ``dynamic`` or ``static``
    kv_dtype: str = ""
    kv_scales: str = ""
    #: where the model is
    device: str = ""
    #: flag of the section ``memory`` -> ``effective``, ``no effect here`` …
    flags: dict[str, str] = {}
    #: changes with what the model answers, see ``paddle_ds.checkpoints.manifest``; empty: an engine that does not say
    weight_version: str = ""


class EngineInfo(msgspec.Struct, frozen=True, tag="info"):
    """State of the engine. ``boot_id`` changes with each start of the process."""

    boot_id: str
    state: EngineState
    pid: int
    progress: float = 0.0
    model: ModelInfo | None = None
    error: ErrorInfo | None = None


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Everything one engine step has for one worker."""

    deltas: list[Delta] = []
    finished: list[Finished] = []
    failed: list[Failed] = []


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Gauges and counters of the engine since its start."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    rss_bytes: int
    prompt_tokens_total: int
    generation_tokens_total: int
    steps_total: int
    preemptions_total: int
    #: "operator@device" -> how many operators of the model run on a slower implementation than there is
    fallback_ops: dict[str, int] = {}
    #: frames from workers that could not be read and named no request that could be answered
    bad_frames_total: int = 0
    #: steps that were computed again in smaller ones, because a device's memory ran out
    shrunk_steps_total: int = 0
    #: tokens a step may have now; 0: an engine that does not say
    step_token_limit: int = 0
    #: figures of a device other than the CPU, such as ``memory_used_bytes``
    device_metrics: dict[str, float] = {}
    #: most requests that failed one after another
    failure_run_max: int = 0


ToEngine = Hello | Submit | Abort
FromEngine = EngineInfo | Step | Stats

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


class _UnreadSubmit(msgspec.Struct, tag="submit"):
    """The one field of a broken ``Submit`` that its answer needs; the others are skipped unread."""

    request_id: str


_decode_unread = msgspec.msgpack.Decoder(_UnreadSubmit).decode


def request_id_of(payload: bytes) -> str | None:
    """The request that a frame names which :data:`decode_to_engine` refuses, where it can still be read."""
    try:
        return _decode_unread(payload).request_id
    except Exception:  # garbage, a deep nest
        return None
