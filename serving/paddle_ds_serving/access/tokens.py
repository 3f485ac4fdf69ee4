"""JSON Web Tokens (RFC 7519) of an identity provider, checked with one key from a file.

The algorithm follows from the key, never from the token: a PEM public key means RS256, anything else is a secret for HS256. So a
token cannot choose ``none``, nor have a public key taken for a secret.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from paddle_ds.errors import ConfigError
from paddle_ds_serving.access.errors import InvalidApiKey
from paddle_ds_serving.access.keys import ID_PATTERN, TOKEN_PREFIX, Principal, is_limit
from paddle_ds_serving.access.scopes import Scope

#: seconds that clocks of server and provider may differ
LEEWAY_S = 10
_MIN_SECRET_BYTES = 32
_MIN_RSA_BITS = 2048


@dataclasses.dataclass(frozen=True)
class VerifyingKey:
    """A key and the one algorithm that it is for."""

    algorithm: str
    key: RSAPublicKey | bytes = dataclasses.field(repr=False)


def read_key(path: Path) -> VerifyingKey:
    """The key in a file.

    Raises:
        ConfigError: it cannot be read, is too short, or is not of a kind that is known here.
    """
    try:
        content = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if b"-----BEGIN" not in content:
        if len(content) < _MIN_SECRET_BYTES:
            raise ConfigError(f"{path}: a secret for HS256 has at least {_MIN_SECRET_BYTES} bytes; this one has {len(content)}")
        return VerifyingKey("HS256", content)
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{path}: this is a private key, which stays with who signs; give the public key")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: no PEM public key: {error}") from error
    if not isinstance(key, RSAPublicKey) or key.key_size < _MIN_RSA_BITS:
        raise ConfigError(f"{path}: expected an RSA public key of at least {_MIN_RSA_BITS} bits")
    return VerifyingKey("RS256", key)


def looks_like_token(text: str) -> bool:
    """Three parts with dots between them. Keys of ours have no dots."""
    return text.count(".") == 2


def verify(token: str, key: VerifyingKey, audience: str, issuer: str | None) -> Principal:
    """Who the token speaks for.

    Raises:
        InvalidApiKey: signature, algorithm, audience, issuer or time are not right, or a claim is missing.
    """
    required = ["exp", "aud", "sub", *(["iss"] if issuer is not None else [])]
    try:
        claims = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            audience=audience,
            issuer=issuer,
            leeway=LEEWAY_S,
            options={"require": required},
        )
    except jwt.InvalidTokenError as error:
        raise InvalidApiKey(f"the token is not valid here: {_reason(error)}") from error
    subject = claims["sub"]
    if not subject:
        raise InvalidApiKey("the token is not valid here: its subject is empty")
    requests, tokens = (_limit(claims, name) for name in ("requests_per_minute", "tokens_per_minute"))
    if not ID_PATTERN.fullmatch(subject):  # it would not fit into a log line
        subject = "sha256:" + hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()
    return Principal(TOKEN_PREFIX + subject, _scopes(claims), requests, tokens, "jwt")


def _reason(error: jwt.InvalidTokenError) -> str:
    """In our own words where PyJWT's would carry what the token says."""
    known: dict[type[jwt.InvalidTokenError], str] = {
        jwt.ExpiredSignatureError: "it has expired",
        jwt.ImmatureSignatureError: "it is not valid yet",
        jwt.InvalidAudienceError: "it is meant for another audience",
        jwt.InvalidIssuerError: "it comes from another issuer",
        jwt.InvalidAlgorithmError: "it is signed with another algorithm than this server's key is for",
        jwt.InvalidSignatureError: "its signature does not match",
    }
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the claim {error.claim} is missing"
    return known.get(type(error), "it is damaged, or a claim has the wrong type")


def _scopes(claims: dict[str, Any]) -> frozenset[Scope]:
    """RFC 8693's ``scope`` is a text with spaces; ``scopes`` is taken as a list. What is not ours is for other services."""
    named = claims.get("scope", claims.get("scopes", ""))
    names = named.split() if isinstance(named, str) else named
    if not isinstance(names, list):
        raise InvalidApiKey("the token is not valid here: its scope is neither a text nor a list")
    return frozenset(scope for scope in Scope if scope.value in names)


def _limit(claims: dict[str, Any], name: str) -> int | None:
    value = claims.get(name)
    if value is not None and not is_limit(value):
        raise InvalidApiKey(f"the token is not valid here: {name} is no whole number of at least 1")
    return value
