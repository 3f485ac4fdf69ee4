"""Which scope each route needs: the one place that says so. ``docs/security.md`` repeats it, and a test compares them."""

from __future__ import annotations

import enum


class Scope(enum.Enum):
    """What a key may be good for. None includes another."""

    INFER = "infer"
    METRICS = "metrics"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)

#: path, or ``…/*`` for all that lies below -> scope; ``None``: open to everybody, on purpose. The longest match counts
ROUTES: dict[str, Scope | None] = {
    "/health": None,
    "/health/*": None,
    "/v2/health/*": None,
    "/v1/*": Scope.INFER,
    "/generate": Scope.INFER,
    "/tokenize": Scope.INFER,
    "/detokenize": Scope.INFER,
    "/version": Scope.INFER,
    "/openapi.json": Scope.INFER,
    "/metrics": Scope.METRICS,
    "/admin/*": Scope.ADMIN,
}


def find(rule: str) -> str | None:
    """The row of :data:`ROUTES` that covers a URL rule of the application; ``None`` where no row does.

    >>> find("/v1/models/<path:model>")
    '/v1/*'
    """
    if rule in ROUTES:
        return rule
    parts = rule.split("/")
    for end in range(len(parts) - 1, 0, -1):
        pattern = "/".join([*parts[:end], "*"])
        if pattern in ROUTES:
            return pattern
    return None


def scope_of(rule: str) -> Scope | None:
    """The scope that a URL rule needs, ``None`` for an open one. A route that was forgotten in the table needs ``admin``."""
    row = find(rule)
    return Scope.ADMIN if row is None else ROUTES[row]


def parse_scopes(names: list[str]) -> frozenset[Scope]:
    """Scopes from their names.

    Raises:
        ValueError: there is none, or one is not known.
    """
    known = {scope.value: scope for scope in Scope}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"scopes are {names}; expected some of {', '.join(known)}")
    return frozenset(known[name] for name in names)
