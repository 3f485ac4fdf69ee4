"""From request fields and the model's defaults to :class:`SamplingParams`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.errors import ConfigError, InvalidRequest
from paddle_ds_serving.protocol.chat import ChatRequest
from paddle_ds_serving.protocol.completions import CompletionRequest
from paddle_ds_serving.protocol.generate import GenerateRequest

_FILE = "generation_config.json"
#: Each answer of a request has its own copy of these on its way to the engine, and each token is compared with them.
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_BIASED_TOKENS = 16_384
#: of a token id as text; Python refuses to read integers of thousands of digits
_MAX_DIGITS = 20
#: fields of generation_config.json that are defaults of a request
_DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_SAME_NAME = (
    *_DEFAULTED,
    "n",
    "max_tokens",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
)


@dataclasses.dataclass(frozen=True)
class SamplingDefaults:
    """What the makers of the model recommend; used for the fields that a request leaves out."""

    values: Mapping[str, float]

    @classmethod
    def from_dir(cls, directory: Path) -> SamplingDefaults:
        """Read ``generation_config.json``. A file that says ``do_sample: false`` means greedy: temperature 0.

        Raises:
            ConfigError: the file is broken, or holds a value that no request could ask for.
        """
        path = directory / _FILE
        if not path.is_file():
            return cls({})
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected an object")
        values = {name: raw[name] for name in _DEFAULTED if raw.get(name) is not None}
        if raw.get("do_sample") is False:
            values["temperature"] = 0.0
        try:
            SamplingParams(**values)
        except InvalidRequest as error:
            raise ConfigError(f"{path}: {error}") from error
        return cls(values)


def chat_params(request: ChatRequest, defaults: SamplingDefaults, num_tokens: int) -> SamplingParams:
    """Raises InvalidRequest, naming the field as the request named it."""
    renames = {"logprobs": "top_logprobs"}
    values = _shared(request, defaults, num_tokens)
    if request.max_completion_tokens is not None:
        values["max_tokens"] = request.max_completion_tokens
        renames["max_tokens"] = "max_completion_tokens"
    if request.logprobs:
        values["logprobs"] = request.top_logprobs or 0
    return _build(values, renames)


def completion_params(request: CompletionRequest, defaults: SamplingDefaults, num_tokens: int) -> SamplingParams:
    """Raises InvalidRequest, naming the field as the request named it."""
    values = _shared(request, defaults, num_tokens)
    if request.logprobs is not None:
        values["logprobs"] = request.logprobs
    return _build(values, {})


def generate_params(request: GenerateRequest, defaults: SamplingDefaults) -> SamplingParams:
    """Raises InvalidRequest, naming the field as the request named it."""
    values: dict[str, Any] = {**defaults.values, **_given(request, (*_DEFAULTED, "seed"))}
    if request.max_length is not None:
        values["max_tokens"] = request.max_length
    values["stop"] = _stop(request.stop)
    return _build(values, {"max_tokens": "max_length"})


def _given(request: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _shared(request: ChatRequest | CompletionRequest, defaults: SamplingDefaults, num_tokens: int) -> dict[str, Any]:
    values: dict[str, Any] = {**defaults.values, **_given(request, _SAME_NAME)}
    values["stop"] = _stop(request.stop)
    values["stop_token_ids"] = tuple(request.stop_token_ids or ())
    _check_number(len(values["stop_token_ids"]), MAX_STOP_TOKEN_IDS, "stop_token_ids")
    for token in values["stop_token_ids"]:
        _check_token(token, num_tokens, "stop_token_ids")
    if request.logit_bias:
        _check_number(len(request.logit_bias), MAX_BIASED_TOKENS, "logit_bias")
        values["logit_bias"] = {_token_id(key, num_tokens): bias for key, bias in request.logit_bias.items()}
    return values


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    _check_number(len(stops), MAX_STOPS, "stop")
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise InvalidRequest(f"stop has a string of {longest} characters; at most {MAX_STOP_CHARACTERS}", param="stop")
    return stops


def _check_number(number: int, limit: int, param: str) -> None:
    if number > limit:
        raise InvalidRequest(f"{param} has {number} entries; at most {limit}", param=param)


def _token_id(text: str, num_tokens: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InvalidRequest(f"logit_bias has the key {text!r}; expected a token id", param="logit_bias")
    return _check_token(int(text), num_tokens, "logit_bias")


def _check_token(token: int, num_tokens: int, param: str) -> int:
    if not 0 <= token < num_tokens:
        raise InvalidRequest(f"{param} names token {token}; the tokenizer has ids 0 to {num_tokens - 1}", param=param)
    return token


def _build(values: dict[str, Any], renames: Mapping[str, str]) -> SamplingParams:
    try:
        return SamplingParams(**values)
    except InvalidRequest as error:
        name = error.param or ""
        if name not in renames:
            raise
        raise InvalidRequest(error.message.replace(name, renames[name]), param=renames[name]) from error
