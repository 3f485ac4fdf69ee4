"""The tree of errors, and its way across the wire."""

from __future__ import annotations

import pytest

from paddle_ds import errors
from paddle_ds.errors import ErrorInfo, InternalError, PaddleDSError, PromptTooLong, from_info


def classes_below(cls: type[PaddleDSError]) -> list[type[PaddleDSError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in classes_below(child))]


TREE = [cls for cls in classes_below(PaddleDSError) if cls.__module__ == errors.__name__]
#: bases that share a code with the class for everything else of their kind
GENERAL = {PaddleDSError: InternalError, errors.RequestError: errors.InvalidRequest}


@pytest.mark.parametrize("cls", TREE)
def test_every_class_has_what_http_needs(cls: type[PaddleDSError]) -> None:
    assert cls.code == cls.code.lower().replace(" ", "_") != ""
    assert cls.type.endswith("_error")
    assert (cls.http_status in (400, 404)) == (cls.type in ("invalid_request_error", "not_found_error"))
    assert cls.http_status in (400, 404, 409, 500, 503)


@pytest.mark.parametrize("cls", TREE)
def test_every_class_is_itself_after_the_wire(cls: type[PaddleDSError]) -> None:
    sent = cls("what happened", param="field")
    received = from_info(sent.info())
    assert type(received) is GENERAL.get(cls, cls)
    assert isinstance(received, cls)
    assert (received.info(), str(received)) == (sent.info(), "what happened")


def test_every_class_is_in_the_drawing() -> None:
    assert errors.__doc__ is not None
    assert [cls.__name__ for cls in TREE if cls.__name__ not in errors.__doc__] == []


def test_codes_tell_classes_apart() -> None:
    codes = [cls.code for cls in TREE if cls not in GENERAL]
    assert len(set(codes)) == len(codes)


def test_a_code_from_elsewhere_is_kept() -> None:
    info = ErrorInfo("teapot", "short and stout", "kettle_error", 418, "spout")
    error = from_info(info)
    assert type(error) is InternalError
    assert error.info() == info


def test_receiving_an_odd_error_leaves_the_classes_alone() -> None:
    from_info(ErrorInfo("internal_error", "odd", "odd_error", 599))
    assert InternalError("plain").info() == ErrorInfo("internal_error", "plain", "server_error", 500)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (None, "this model's context length is 8 tokens; the prompt has 9 tokens. Shorten"),
        (5, "the prompt has 9 tokens and max_tokens asks for 5 more. Shorten"),
    ],
)
def test_prompt_too_long_has_the_figures(asked: int | None, sentence: str) -> None:
    error = PromptTooLong.of(9, asked, 8)
    assert sentence in str(error)
    assert (error.code, error.http_status) == ("context_length_exceeded", 400)
