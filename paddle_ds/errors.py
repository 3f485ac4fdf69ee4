"""Every error a user can meet, as one tree.

    PaddleDSError
    ├── ConfigError                  a configuration file, flag or environment variable is wrong
    │   └── RecipeError                  a quantisation recipe is wrong, or does not fit the model
    ├── UnsupportedError             asked for something that does not exist here
    ├── CheckpointError              a checkpoint cannot be used
    │   ├── CheckpointNotFound           no such directory or file
    │   ├── UnknownFormatError           no reader recognises the files
    │   ├── UnknownArchitectureError     config.json names a model we do not have
    │   ├── ConfigMismatchError          config.json contradicts itself or the tensors
    │   ├── MissingTensorError           a tensor the config implies is absent
    │   ├── UnexpectedTensorError        a tensor the config does not imply is present
    │   ├── TensorShapeError             a tensor has another shape than the config implies
    │   ├── TensorDtypeError             a tensor is stored in a type its format does not allow
    │   ├── TensorNotFiniteError         a tensor holds NaN or infinity
    │   ├── TruncatedFileError           a file ends before its header says it does
    │   ├── CorruptFileError             a file contradicts itself: no header, overlapping tensors, garbage
    │   ├── ManifestMismatchError        a tensor is not the one that manifest.json names
    │   ├── CanaryError                  a model was loaded, and does not answer as it should
    │   ├── ShadowMismatchError          it does not answer live requests as the current one does
    │   ├── UnsafePickleError            a pickle wants to build something that is not an array
    │   └── HubError                     a checkpoint could not be fetched from a hub
    ├── TokenizerError               tokenizer files are absent or broken
    ├── ChatTemplateError            the template is absent, broken, or refuses the messages
    ├── DeviceError                  the requested device cannot be used
    │   ├── DeviceNotFound               it is not here; the message says what is missing
    │   ├── DeviceOutOfMemory            an allocation on it failed
    │   └── DeviceLost                   it has failed for good
    │       └── DeviceTimeout                it does not finish its work
    ├── KernelError                  an operator could not be built or loaded
    ├── MemoryPlanError              the model does not fit into the memory there is
    ├── CalibrationError             calibration data are absent, damaged or too few
    ├── QuantizationError            a model could not be quantised
    │   └── QualityGateError             it was, and is not good enough
    ├── RequestError                 the client sent something that cannot be answered
    │   ├── InvalidRequest               a field is wrong
    │   ├── UnsupportedParameter         a field is known (or unknown) but not supported
    │   ├── PromptTooLong                prompt and answer exceed the context length
    │   └── ModelNotFound                another model is asked for than the one served
    └── EngineError                  the engine could not finish a request
        ├── EngineUnavailable            not started, loading, or down
        ├── EngineDied                   it died while the request ran
        ├── ServerOverloaded             its queue is full
        ├── CircuitOpen                  too many requests failed lately; none is tried for some seconds
        ├── UpdateRunning                another update is not finished yet
        ├── NothingToRollBack            there is no earlier checkpoint
        ├── RunDirectoryError            the runtime directory cannot be written to: its disk is full
        └── InternalError                a defect of ours

Each class carries a ``code`` (stable, machine readable), an ``http_status`` and the ``type`` of
OpenAI's error object. Errors cross the process border as :class:`ErrorInfo` and are mapped to HTTP in one place.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ErrorInfo:
    """An error as data: what crosses the IPC socket and becomes an HTTP error object."""

    code: str
    message: str
    type: str = "server_error"
    http_status: int = 500
    param: str | None = None


class PaddleDSError(Exception):
    """Root of the tree. ``str(error)`` is a sentence for the user."""

    code = "internal_error"
    http_status = 500
    type = "server_error"
    #: what a command ends with
    exit_code = 1

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def info(self) -> ErrorInfo:
        """This error as data."""
        return ErrorInfo(self.code, self.message, self.type, self.http_status, self.param)


class ConfigError(PaddleDSError):
    code = "config_error"


class RecipeError(ConfigError):
    code = "recipe_error"


class UnsupportedError(PaddleDSError):
    code = "unsupported"
    http_status = 400
    type = "invalid_request_error"


class CheckpointError(PaddleDSError):
    code = "checkpoint_error"


class CheckpointNotFound(CheckpointError):
    code = "checkpoint_not_found"


class UnknownFormatError(CheckpointError):
    code = "checkpoint_unknown_format"


class UnknownArchitectureError(CheckpointError):
    code = "checkpoint_unknown_architecture"


class ConfigMismatchError(CheckpointError):
    code = "checkpoint_config_mismatch"


class MissingTensorError(CheckpointError):
    code = "checkpoint_missing_tensor"


class UnexpectedTensorError(CheckpointError):
    code = "checkpoint_unexpected_tensor"


class TensorShapeError(CheckpointError):
    code = "checkpoint_tensor_shape"


class TensorDtypeError(CheckpointError):
    code = "checkpoint_tensor_dtype"


class TensorNotFiniteError(CheckpointError):
    code = "checkpoint_tensor_not_finite"


class TruncatedFileError(CheckpointError):
    code = "checkpoint_truncated_file"


class CorruptFileError(CheckpointError):
    code = "checkpoint_corrupt_file"


class ManifestMismatchError(CheckpointError):
    code = "checkpoint_manifest_mismatch"


class CanaryError(CheckpointError):
    code = "checkpoint_canary_failed"


class ShadowMismatchError(CheckpointError):
    code = "checkpoint_shadow_mismatch"


class UnsafePickleError(CheckpointError):
    code = "checkpoint_unsafe_pickle"


class HubError(CheckpointError):
    code = "hub_error"


class TokenizerError(PaddleDSError):
    code = "tokenizer_error"


class ChatTemplateError(PaddleDSError):
    code = "chat_template_error"
    http_status = 400
    type = "invalid_request_error"


class DeviceError(PaddleDSError):
    code = "device_error"


class DeviceNotFound(DeviceError):
    """Nothing of that type or index is here; the message says what is missing and what is there."""

    code = "device_not_found"


class DeviceOutOfMemory(DeviceError):
    """An allocation on the device failed."""

    code = "device_out_of_memory"
    http_status = 503
    type = "unavailable_error"


class DeviceLost(DeviceError):
    """The device has failed for good; the process that used it must end."""

    code = "device_lost"
    http_status = 503
    type = "unavailable_error"


class DeviceTimeout(DeviceLost):
    """The device did not finish in time; what runs on it cannot be stopped from here."""

    code = "device_timeout"


class KernelError(PaddleDSError):
    code = "kernel_error"


class MemoryPlanError(PaddleDSError):
    code = "memory_plan_error"


class CalibrationError(PaddleDSError):
    code = "calibration_error"


class QuantizationError(PaddleDSError):
    code = "quantization_error"


class QualityGateError(QuantizationError):
    """``exit_code`` is what tells a script this refusal from every other failure."""

    code = "quality_gate_failed"
    exit_code = 3


class RequestError(PaddleDSError):
    code = "invalid_request"
    http_status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    """A field is missing, has the wrong type, or is out of range."""

    code = "invalid_request"  # its own, so that it stays itself when it crosses the wire


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"


class PromptTooLong(RequestError):
    code = "context_length_exceeded"

    @classmethod
    def of(cls, num_prompt_tokens: int, max_new_tokens: int | None, limit_tokens: int) -> PromptTooLong:
        """The usual sentence, with the three figures a client needs to mend its request."""
        asked = f" and max_tokens asks for {max_new_tokens} more" if max_new_tokens is not None else ""
        return cls(
            f"this model's context length is {limit_tokens} tokens; the prompt has {num_prompt_tokens} tokens{asked}. "
            "Shorten the prompt or ask for fewer tokens.",
            param="messages",
        )


class ModelNotFound(RequestError):
    code = "model_not_found"
    http_status = 404
    type = "not_found_error"


class EngineError(PaddleDSError):
    code = "engine_error"


class EngineUnavailable(EngineError):
    code = "engine_unavailable"
    http_status = 503
    type = "unavailable_error"


class EngineDied(EngineError):
    code = "engine_died"
    http_status = 503
    type = "unavailable_error"


class ServerOverloaded(EngineError):
    code = "server_overloaded"
    http_status = 503
    type = "unavailable_error"


class CircuitOpen(EngineError):
    code = "circuit_open"
    http_status = 503
    type = "unavailable_error"


class UpdateRunning(EngineError):
    code = "update_running"
    http_status = 409
    type = "conflict_error"


class NothingToRollBack(EngineError):
    code = "nothing_to_roll_back"
    http_status = 409
    type = "conflict_error"


class RunDirectoryError(EngineError):
    code = "run_directory_error"
    http_status = 503
    type = "unavailable_error"


class InternalError(EngineError):
    code = "internal_error"


def _all_subclasses(cls: type[PaddleDSError]) -> list[type[PaddleDSError]]:
    found = [cls]
    for child in cls.__subclasses__():
        found.extend(_all_subclasses(child))
    return found


def from_info(info: ErrorInfo) -> PaddleDSError:
    """The exception an :class:`ErrorInfo` stands for, of the most specific class with its code.

    >>> type(from_info(PromptTooLong("long").info())).__name__
    'PromptTooLong'
    """
    matches = [cls for cls in _all_subclasses(PaddleDSError) if cls.code == info.code and "code" in cls.__dict__]
    error = (matches[-1] if matches else InternalError)(info.message, param=info.param)
    error.code = info.code  # keep what the other side said, also where its class is unknown here
    error.http_status = info.http_status
    error.type = info.type
    return error
