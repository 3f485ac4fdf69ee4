"""``POST /v1/feedback``: what a user thinks of an answer, kept for later fine-tuning."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from flask import Blueprint, Response, current_app

from paddle_ds.logs import fields
from paddle_ds_serving.feedback import FeedbackFile, FeedbackNotEnabled
from paddle_ds_serving.protocol import feedback as wire
from paddle_ds_serving.routes.bodies import json_body
from paddle_ds_serving.service import current
from paddle_ds_serving.sse import json_response

_log = logging.getLogger(__name__)
_KEY = "paddle_ds.feedback"

blueprint = Blueprint("feedback", __name__)


@blueprint.post("/v1/feedback")
def create() -> Response:
    """Keep one rating. It needs no engine: an answer is rated after it was given.

    Raises:
        FeedbackNotEnabled: no directory is set.
        InvalidRequest, UnsupportedParameter: the body is wrong.
        FeedbackNotStored: the disk is full.
    """
    service = current()
    directory = service.settings.feedback_dir
    if directory is None:
        raise FeedbackNotEnabled("this server keeps no feedback; its operator can set PADDLE_DS_FEEDBACK_DIR")
    request = json_body(wire.FeedbackRequest)
    request.check()
    info = service.engine.info
    record = wire.FeedbackRecord(
        f"fb-{service.make_id()}",
        service.unix_s(),
        request.rating,
        request.request_id,
        request.response_id,
        request.comment,
        request.label,
        info.model.name if info is not None and info.model is not None else None,
    )
    _file(directory).add(msgspec.json.encode(record))
    service.metrics.feedback.labels(request.verdict).inc()
    _log.info("feedback.stored", extra=fields(id=record.id, request_id=record.request_id, rating=record.rating))
    return json_response(wire.FeedbackResponse(record.id, record.created), 201)


def _file(directory: str) -> FeedbackFile:
    """One for the application, so that its threads share a lock."""
    extensions = current_app.extensions
    file: FeedbackFile = extensions.setdefault(_KEY, FeedbackFile(Path(directory)))
    return file
