"""``POST /v1/feedback``."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from paddle_ds.errors import InvalidRequest

MAX_COMMENT_CHARACTERS = 8192

_ID = re.compile(r"^[A-Za-z0-9._:/+=@-]{1,128}$")
_LABEL = re.compile(r"^[A-Za-z0-9._-]{1,64}$")

Verdict = Literal["up", "down", "neutral"]


class FeedbackRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user thinks of an answer, which ``request_id``, ``response_id`` or both name."""

    rating: Literal["up", "down", 1, 2, 3, 4, 5]
    request_id: str | None = None
    response_id: str | None = None
    comment: str | None = None
    label: str | None = None

    @property
    def verdict(self) -> Verdict:
        """The rating as dashboards count it: 4 and 5 are good, 1 and 2 are bad."""
        if self.rating in ("up", 4, 5):
            return "up"
        return "neutral" if self.rating == 3 else "down"

    def check(self) -> None:
        """Rules that types do not say.

        Raises:
            InvalidRequest: no answer is named, or a field is too long or has letters that an id cannot have.
        """
        if self.request_id is None and self.response_id is None:
            raise InvalidRequest(
                "send request_id (the header x-request-id), response_id (the answer's id), or both", param="request_id"
            )
        for name, pattern, rule in (
            ("request_id", _ID, "1 to 128 letters, digits and ._:/+=@-"),
            ("response_id", _ID, "1 to 128 letters, digits and ._:/+=@-"),
            ("label", _LABEL, "1 to 64 letters, digits and ._-"),
        ):
            value = getattr(self, name)
            if value is not None and not pattern.fullmatch(value):
                raise InvalidRequest(f"{name} must be {rule}", param=name)
        if self.comment is not None and len(self.comment) > MAX_COMMENT_CHARACTERS:
            raise InvalidRequest(f"comment has {len(self.comment)} characters; at most {MAX_COMMENT_CHARACTERS}", param="comment")


class FeedbackRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the file. What was not said is left out."""

    id: str
    #: unix seconds
    created: int
    rating: str | int
    request_id: str | None = None
    response_id: str | None = None
    comment: str | None = None
    label: str | None = None
    #: what is served while the feedback arrives
    model: str | None = None


class FeedbackResponse(msgspec.Struct, frozen=True):
    """That it is on disk."""

    id: str
    created: int
    object: Literal["feedback"] = "feedback"
