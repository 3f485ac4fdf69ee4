"""What surrounds the engine, read when Prometheus asks: its restarts, the memory there is, the worth of the checkpoint.

    supervisor ── engine-restarts ──┐
    /sys/fs/cgroup/memory.max ──────┼── HostCollector ── GET /metrics
    passport.json of the model ─────┘

All three are the same whichever HTTP worker answers the scrape. What cannot be read is a missing metric, not a zero.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from paddle_ds.logs import fields
from paddle_ds_serving.engine import EngineClient
from paddle_ds_serving.engine_metrics import PREFIX
from paddle_ds_serving.supervision import pointer

_log = logging.getLogger(__name__)

_RESTARTS_FILE = "engine-restarts"
_PASSPORT_FILE = "passport.json"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

#: metric, its meaning, and where its figure stands in the passport
_QUALITY = (
    ("quality_kl_mean", "KL divergence of the served checkpoint from its reference, mean over tokens, in nats.", ("kl", "mean")),
    ("quality_top1_agreement", "Share of tokens where checkpoint and reference agree on the first choice.", ("top1_agreement",)),
    ("quality_gate_passed", "1 where the checkpoint held the budgets of its quality gate, else 0.", ("gate", "passed")),
)


def record_restarts(run_dir: Path, num_restarts: int) -> None:
    """For the supervisor: leave the count where HTTP workers find it, beside the engine's socket.

    Raises:
        RunDirectoryError: the disk refuses.
    """
    pointer.put(run_dir / _RESTARTS_FILE, b"%d" % num_restarts)


class HostCollector(Collector):
    """Yields what there is of the figures above. ``run_dir`` is the directory of the engine's socket, where there is one."""

    def __init__(self, engine: EngineClient, run_dir: Path | None, cgroup_limit: Path = _CGROUP_LIMIT) -> None:
        self._engine = engine
        self._run_dir = run_dir
        self._cgroup_limit = cgroup_limit
        self._passport_key: tuple[str, int, int] | None = None
        self._passport: dict[str, Any] = {}

    def collect(self) -> Iterator[Metric]:
        """Called once a scrape."""
        num_restarts = self._num_restarts()
        if num_restarts is not None:
            meaning = "Starts of the engine after its first, as its supervisor counts them."
            yield CounterMetricFamily(f"{PREFIX}engine_restarts", meaning, num_restarts)
        limit = memory_limit_bytes(self._cgroup_limit)
        yield GaugeMetricFamily(f"{PREFIX}memory_limit_bytes", "Memory that the engine may have at most.", limit)
        yield from self._quality()

    def _num_restarts(self) -> int | None:
        if self._run_dir is None:
            return None
        try:
            return int((self._run_dir / _RESTARTS_FILE).read_text(encoding="ascii"))
        except FileNotFoundError:  # a worker that no supervisor started
            return None

    def _quality(self) -> Iterator[Metric]:
        info = self._engine.info
        if info is None or info.model is None:
            return
        passport = self._read_passport(Path(info.model.directory) / _PASSPORT_FILE)
        for name, meaning, keys in _QUALITY:
            value: Any = passport
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                gauge = GaugeMetricFamily(PREFIX + name, meaning, labels=("model",))
                gauge.add_metric((info.model.name,), float(value))
                yield gauge

    def _read_passport(self, path: Path) -> dict[str, Any]:
        """The passport, read again when its file changes; empty where there is none that can be read."""
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        key = (str(path), found.st_mtime_ns, found.st_size)
        if key != self._passport_key:
            self._passport_key, self._passport = key, {}
            try:
                self._passport = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                _log.warning("passport.unreadable", extra=fields(error=str(error)))
        return self._passport


def memory_limit_bytes(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """The machine's memory, or less where the control group (container, service) allows less."""
    total: int = psutil.virtual_memory().total
    try:
        text = cgroup_limit.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total  # "max": no limit
