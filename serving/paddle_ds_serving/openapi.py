"""What each route takes and answers: the one table behind ``/openapi.json``. A test compares it with the application's routes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from paddle_ds import errors
from paddle_ds_serving.access.errors import PermissionDenied
from paddle_ds_serving.content_filter.install import ContentFiltered
from paddle_ds_serving.feedback import FeedbackNotEnabled, FeedbackNotStored
from paddle_ds_serving.protocol import answers, chat, completions, feedback, generate, tokenize
from paddle_ds_serving.routes.admin import DrainRequest, LoadRequest, RollbackRequest
from paddle_ds_serving.routes.quality import PassportNotFound

Errors = tuple[type[errors.PaddleDSError], ...]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One method of one route.

    Attributes:
        rule: as Flask has it.
        answer: type of the JSON answer; ``None``: it is text, of the type ``text``.
        body: type of the JSON body; ``None``: there is none.
        event: type of an event where the body asks for a stream.
        status: of the answer.
        unwell: the answer comes with status 503, too, and not the error object.
        errors: beside those that every route has, see ``openapi_document``.
        codes: further errors, as status and code.
        cached: the answer may come from the response cache.
    """

    method: str
    rule: str
    name: str
    summary: str
    tag: str
    answer: Any
    body: type[msgspec.Struct] | None = None
    event: type[msgspec.Struct] | None = None
    status: int = 200
    unwell: bool = False
    errors: Errors = ()
    codes: tuple[tuple[int, str], ...] = ()
    cached: bool = False
    text: str = ""
    example: Mapping[str, Any] | None = None


_LOADED: Errors = (errors.EngineUnavailable, errors.TokenizerError)
_MODEL: Errors = (errors.ModelNotFound, *_LOADED)
_GENERATES: Errors = (
    ContentFiltered,
    errors.PromptTooLong,
    *_MODEL,
    errors.EngineDied,
    errors.ServerOverloaded,
    errors.CircuitOpen,
    errors.DeviceOutOfMemory,
    errors.DeviceLost,
    errors.DeviceTimeout,
)
_CHECKPOINT = (
    errors.CheckpointError,
    errors.CheckpointNotFound,
    errors.UnknownFormatError,
    errors.UnknownArchitectureError,
    errors.ConfigMismatchError,
    errors.MissingTensorError,
    errors.UnexpectedTensorError,
    errors.TensorShapeError,
    errors.TensorDtypeError,
    errors.TensorNotFiniteError,
    errors.TruncatedFileError,
    errors.CorruptFileError,
    errors.ManifestMismatchError,
    errors.CanaryError,
    errors.UnsafePickleError,
    errors.TokenizerError,
    errors.MemoryPlanError,
)
#: a checkpoint that is refused is told as an error of the request
_REFUSED = tuple((400, error.code) for error in _CHECKPOINT)
_SUPERVISOR: Errors = (PermissionDenied, errors.EngineUnavailable)
_UPDATES: Errors = (*_SUPERVISOR, errors.UpdateRunning, errors.EngineDied)

_CHAT_EXAMPLE = {"messages": [{"role": "user", "content": "What is 12 + 7?"}], "temperature": 0.6}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        *("POST", "/v1/chat/completions", "createChatCompletion", "Answer a conversation", "generation", chat.ChatResponse),
        body=chat.ChatRequest,
        event=chat.ChatChunk,
        errors=(*_GENERATES, errors.ChatTemplateError),
        cached=True,
        example=_CHAT_EXAMPLE,
    ),
    Operation(
        *("POST", "/v1/completions", "createCompletion", "Continue one text or several", "generation"),
        answer=completions.CompletionResponse,
        body=completions.CompletionRequest,
        event=completions.CompletionResponse,
        errors=_GENERATES,
        cached=True,
        example={"prompt": "12 + 7 =", "max_tokens": 8},
    ),
    Operation(
        *("POST", "/generate", "generate", "One prompt in, one answer out", "generation", generate.GenerateResponse),
        body=generate.GenerateRequest,
        event=generate.GenerateChunk,
        errors=(*_GENERATES, errors.ChatTemplateError),
        cached=True,
        example={"prompt": "What is 12 + 7?", "temperature": 0.6},
    ),
    Operation("GET", "/v1/models", "listModels", "The model that is served", "models", answers.ModelList, errors=_LOADED),
    Operation("GET", "/v1/models/<path:model>", "getModel", "That model", "models", answers.ModelCard, errors=_MODEL),
    Operation(
        *("GET", "/v1/models/<path:model>/quality", "getModelQuality", "Its quality passport", "models", dict[str, Any]),
        errors=(*_MODEL, PassportNotFound, errors.CorruptFileError),
    ),
    Operation(
        *("POST", "/tokenize", "tokenize", "Token ids of a text or a conversation", "tokens", tokenize.TokenizeResponse),
        body=tokenize.TokenizeRequest,
        errors=(*_MODEL, errors.ChatTemplateError, errors.PromptTooLong),
        example={"prompt": "What is 12 + 7?"},
    ),
    Operation(
        *("POST", "/detokenize", "detokenize", "The text of token ids", "tokens", tokenize.DetokenizeResponse),
        body=tokenize.DetokenizeRequest,
        errors=_MODEL,
        example={"tokens": [1, 2, 3]},
    ),
    Operation(
        *("POST", "/v1/feedback", "createFeedback", "Keep what a user thinks of an answer", "feedback"),
        answer=feedback.FeedbackResponse,
        body=feedback.FeedbackRequest,
        status=201,
        errors=(FeedbackNotEnabled, FeedbackNotStored),
        example={"response_id": "chatcmpl-0123456789abcdef01234567", "rating": "up"},
    ),
    Operation(
        *("GET", "/health", "getHealth", "Whether requests are answered, and everything about it", "health", answers.Health),
        unwell=True,
    ),
    Operation("GET", "/health/ready", "getReady", "Whether requests are answered", "health", answers.Probe, unwell=True),
    Operation("GET", "/health/live", "getLive", "Whether the server is worth keeping", "health", answers.Probe, unwell=True),
    Operation("GET", "/v2/health/ready", "getKserveReady", "Readiness for KServe", "health", answers.KserveReady, unwell=True),
    Operation("GET", "/v2/health/live", "getKserveLive", "Liveness for KServe", "health", answers.KserveLive, unwell=True),
    Operation("GET", "/metrics", "getMetrics", "Figures for Prometheus", "monitoring", None, text="text/plain"),
    Operation("GET", "/version", "getVersion", "The version of this software", "monitoring", answers.Version),
    Operation("GET", "/openapi.json", "getOpenapi", "This document", "monitoring", dict[str, Any]),
    Operation(
        *("GET", "/admin/status", "getStatus", "Engines, versions, and an update that runs", "admin", answers.AdminStatus),
        errors=_SUPERVISOR,
    ),
    Operation(
        *("POST", "/admin/models/load", "loadModel", "Serve another checkpoint", "admin", answers.Updated),
        body=LoadRequest,
        errors=_UPDATES,
        codes=(*_REFUSED, (400, errors.ShadowMismatchError.code)),
        example={"path": "/models/r1-distill-qwen-1.5b-w8a8"},
    ),
    Operation(
        *("POST", "/admin/rollback", "rollBack", "Serve the checkpoint that was served before", "admin", answers.Updated),
        body=RollbackRequest,
        errors=(*_UPDATES, errors.NothingToRollBack),
        codes=_REFUSED,
        example={},
    ),
    Operation(
        *("POST", "/admin/drain", "drain", "Take no new requests, or take them again", "admin", answers.AdminDrained),
        body=DrainRequest,
        errors=_SUPERVISOR,
        example={"enabled": True},
    ),
)
