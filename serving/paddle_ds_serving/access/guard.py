"""Who asks, and whether they may: from the headers of a request to a principal, or to a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from paddle_ds.errors import ConfigError
from paddle_ds.settings import Settings
from paddle_ds_serving.access import keys, tokens
from paddle_ds_serving.access.errors import InvalidApiKey, PermissionDenied
from paddle_ds_serving.access.keys import ApiKey, Principal
from paddle_ds_serving.access.scopes import Scope, scope_of
from paddle_ds_serving.access.watched import Watched

_NO_ADMIN = (
    "admin routes never work without a key, and this server has none: make one with "
    "`paddle-ds keys create --id NAME --scopes admin --file FILE` and set PADDLE_DS_API_KEYS_FILE, or set PADDLE_DS_API_KEY"
)


class Guard:
    """The keys in force.

    Raises:
        ConfigError: from the constructor, where a setting, or a file that it names, is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self._environment: tuple[ApiKey, ...] = ()
        self._file: Watched[tuple[ApiKey, ...]] | None = None
        self._token_key: Watched[tokens.VerifyingKey] | None = None
        self._audience, self._issuer = settings.jwt_audience or "", settings.jwt_issuer
        if settings.api_key is not None:
            self._environment = (keys.environment_key(settings.api_key),)
        if settings.api_keys_file is not None:
            self._file = Watched(Path(settings.api_keys_file), keys.read)
        if settings.jwt_key_file is not None:
            if settings.jwt_audience is None:
                raise ConfigError(
                    "environment: PADDLE_DS_JWT_KEY_FILE is set, and PADDLE_DS_JWT_AUDIENCE is not; it is needed, too"
                )
            self._token_key = Watched(Path(settings.jwt_key_file), tokens.read_key)
        elif settings.jwt_audience is not None or settings.jwt_issuer is not None:
            raise ConfigError("environment: PADDLE_DS_JWT_AUDIENCE or PADDLE_DS_JWT_ISSUER is set without PADDLE_DS_JWT_KEY_FILE")

    @property
    def is_set(self) -> bool:
        """Whether keys are configured at all; a file without entries counts, and nobody gets in."""
        return bool(self._environment or self._file or self._token_key)

    def check(self, rule: str | None, header: Callable[[str], str | None]) -> Principal | None:
        """Let a request to a URL rule in, or not. ``None`` where nobody has to say who they are.

        A path without a rule needs any key at all, so that nobody learns without one which paths there are.

        Raises:
            InvalidApiKey: there is no key, or it is not valid.
            PermissionDenied: it lacks the scope.
        """
        scope = None if rule is None else scope_of(rule)
        if rule is not None and scope is None:
            return None
        if not self.is_set:
            if scope is Scope.ADMIN:
                raise PermissionDenied(_NO_ADMIN, scope=Scope.ADMIN.value)
            return None
        principal = self._principal(_presented(header))
        if scope is not None and scope not in principal.scopes:
            raise PermissionDenied(f"the key {principal.id!r} lacks the scope {scope.value!r}", scope=scope.value)
        return principal

    def _principal(self, presented: str | None) -> Principal:
        if presented is None:
            raise InvalidApiKey("this server needs a key: send `Authorization: Bearer KEY`, or the header x-api-key")
        in_file = self._file.value if self._file is not None else ()
        key = keys.find((*self._environment, *in_file), presented)
        if key is not None:
            return key.principal()
        if self._token_key is not None and tokens.looks_like_token(presented):
            return tokens.verify(presented, self._token_key.value, self._audience, self._issuer)
        raise InvalidApiKey("this key is not known here, or was revoked")


def _presented(header: Callable[[str], str | None]) -> str | None:
    """The bearer token; without one, ``x-api-key`` (a proxy may use ``Authorization`` for itself)."""
    kind, _, value = (header("authorization") or "").strip().partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    return (header("x-api-key") or "").strip() or None


def challenge(error: InvalidApiKey | PermissionDenied, given: bool) -> Mapping[str, str]:
    """RFC 6750's header for a refusal."""
    text = 'Bearer realm="paddle-ds"'
    if isinstance(error, PermissionDenied):
        text += f', error="insufficient_scope", scope="{error.scope}"'
    elif given:
        text += ', error="invalid_token"'
    return {"www-authenticate": text}
