"""Refusals. They never cross the wire to the engine, so they live here and not in the library's tree."""

from __future__ import annotations

from paddle_ds.errors import PaddleDSError


class InvalidApiKey(PaddleDSError):
    """No key, or one that is not known, has expired, or is meant for others."""

    code = "invalid_api_key"
    http_status = 401
    type = "authentication_error"


class PermissionDenied(PaddleDSError):
    """A known key without the scope that the route needs, or a route that nobody may use as this server is set up."""

    code = "permission_denied"
    http_status = 403
    type = "permission_error"

    def __init__(self, message: str, *, scope: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.scope = scope


class RateLimitExceeded(PaddleDSError):
    """The key's quota is used up; ``retry_after_s`` is when its bucket will hold enough."""

    code = "rate_limit_exceeded"
    http_status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s
