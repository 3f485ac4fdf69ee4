"""Who may do what: API keys and JWTs, scopes of routes, quotas, and the cache of deterministic answers.

request ── guard ── 401, 403, 429 ──▶ client
             │  keys, tokens: who asks        scopes: what the route needs
             │  quota + limits: how much      (in one server: SQLite in memory or a file; between servers: Redis)
             ▼
           route ── quota: tokens reserved ── response_cache ── engine
"""
