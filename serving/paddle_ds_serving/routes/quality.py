"""``GET /v1/models/{id}/quality``: the quality passport that lies beside the weights of the served model."""

from __future__ import annotations

from pathlib import Path

import msgspec
from flask import Blueprint, Response

from paddle_ds.errors import CorruptFileError, PaddleDSError
from paddle_ds_serving.service import check_model, current

blueprint = Blueprint("quality", __name__)

#: as ``paddle-ds quantize`` writes it
_FILE_NAME = "passport.json"


class PassportNotFound(PaddleDSError):
    """The served checkpoint was not measured, or its passport was not kept."""

    code = "passport_not_found"
    http_status = 404
    type = "not_found_error"


@blueprint.get("/v1/models/<path:model>/quality")
def quality(model: str) -> Response:
    """The passport as its file has it, read at each request: a model that is measured while it is served has one from then on.

    Raises:
        ModelNotFound: another model is asked for.
        PassportNotFound: there is none.
        CorruptFileError: the file is there, and is no JSON object or cannot be read.
    """
    served = current().served()
    check_model(served.model, model)
    path = Path(served.model.directory) / _FILE_NAME
    try:
        content = path.read_bytes()
        if not isinstance(msgspec.json.decode(content), dict):
            raise CorruptFileError(f"{_FILE_NAME} of the model {model!r}: expected a JSON object")
    except (FileNotFoundError, NotADirectoryError):
        raise PassportNotFound(
            f"the model {model!r} has no quality passport; paddle-ds quantize writes one, and so does paddle-ds eval --json"
        ) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFileError(f"{_FILE_NAME} of the model {model!r} cannot be read: {error}") from error
    return Response(content, content_type="application/json")
