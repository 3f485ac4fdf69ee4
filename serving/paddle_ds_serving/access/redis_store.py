"""Buckets in Redis, so that several servers share a key's quota.

One script does the arithmetic of ``limits``, in one step and by Redis's own clock: servers whose clocks differ agree. A bucket
expires when it is full, so Redis holds as many keys as there are buckets in use.
"""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from paddle_ds.errors import ConfigError
from paddle_ds_serving.access.limits import DEEPEST_S, EPSILON_S, WINDOW_S, StoreDown

#: what all keys of ours begin with
PREFIX = "paddle_ds:"
#: for a connection and for an answer; after two of them a request goes on without Redis
TIMEOUT_S = 0.5

#: KEYS: bucket. ARGV: cost, limit (below 0: none), window, deepest; all in seconds. Returns the seconds to wait, as text
_CHANGE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local full = tonumber(redis.call('GET', KEYS[1]) or '0')
local cost, limit, window, deepest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local used = math.max(full - now, 0)
if used > deepest + 0.001 then used = 0 end
if limit >= 0 and used + cost > limit then
  return string.format('%.6f', used + cost - window)
end
used = math.min(math.max(used + cost, 0), deepest)
if used > 0 then
  redis.call('SET', KEYS[1], string.format('%.6f', now + used), 'PX', math.ceil(used * 1000))
else
  redis.call('DEL', KEYS[1])
end
return '0'
"""


def connect(url: str) -> redis.Redis:
    """A client. Nothing is sent yet; connections are made as they are needed, and again after they broke.

    Raises:
        ConfigError: the URL is wrong. The message does not repeat it, a password may be in it.
    """
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # a connection that Redis has closed meanwhile is opened again, once
        )
    except ValueError as error:
        raise ConfigError("environment: PADDLE_DS_REDIS_URL is wrong; expected redis://, rediss:// or unix://") from error


class RedisStore:
    """Buckets in Redis.

    Raises:
        StoreDown: from every method, where Redis does not answer in time, or not as it should.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._change: Any = client.register_script(_CHANGE)

    def take(self, name: str, cost_s: float) -> float:
        return self._run(name, cost_s, WINDOW_S + EPSILON_S)

    def charge(self, name: str, cost_s: float) -> None:
        self._run(name, cost_s, -1.0)

    def _run(self, name: str, cost_s: float, limit_s: float) -> float:
        try:
            return float(self._change(keys=[f"{PREFIX}bucket:{name}"], args=[cost_s, limit_s, WINDOW_S, DEEPEST_S]))
        except (redis.RedisError, OSError, ValueError) as error:
            raise StoreDown(f"{type(error).__name__}: {error}") from error
