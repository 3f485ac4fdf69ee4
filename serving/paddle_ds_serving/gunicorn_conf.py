"""Gunicorn's configuration as a module, so that an installed package carries it; `paddle-ds serve` adds address and workers.

Threads, not gevent: docs/adr/0003-gunicorn-worker-class.md has the measurement.
"""

import os
import resource
import shutil
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

from paddle_ds import logs as _logs
from paddle_ds import settings as _settings_table
from paddle_ds.ipc.parent import end_with_parent
from paddle_ds_serving import metric_files as _metric_files

_settings = _settings_table.load()

wsgi_app = "paddle_ds_serving.wsgi:application()"
#: gthread with limits on slow clients
worker_class = "paddle_ds_serving.http_worker.BoundedWorker"
#: a stream holds a thread for its whole life, so threads bound the streams of a worker; they are made as needed
workers = 2
threads = 1024
#: threads (of few, a quarter) that no generation may take: when all others stream, probes and refusals are still answered
_SPARE_THREADS = 32
#: how long a thread may keep the interpreter while others want it. With Python's 5 ms, hundreds of woken streams spend half
#: the CPU on asking for it in vain; nothing here computes for long without releasing it
_SWITCH_INTERVAL_S = 0.05
#: connections of a worker beyond its threads wait for one (kept alive ones need none)
worker_connections = 4096
backlog = 2048
#: never: a ZeroMQ context and its I/O thread do not survive a fork
preload_app = False

#: a worker that does not answer the master for so long is killed; long answers do not count, threads are not watched
timeout = 60
#: how long streams may go on after a stop was asked for
graceful_timeout = 30
#: longer than the idle time of the usual proxies' upstream connections, so that the proxy is the one who closes
keepalive = 75

limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
#: by default a local proxy may set SCRIPT_NAME and PATH_INFO with headers of these names, and so may its clients where it passes
#: them on: another path than the one that the proxy has checked
forwarder_headers = ""

#: the application writes one structured line a request; Gunicorn's own access log would repeat it
accesslog = None
errorlog = "-"
loglevel = "warning"
#: Gunicorn's control socket: one more way in, and nothing here needs it
control_socket_disable = True
#: heartbeat files in memory: on a slow disk they can make a healthy worker look dead
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None


def _metrics_dir() -> str:
    """Where workers keep their counters for each other. It must be known before a worker imports prometheus_client.

    Each start gets an empty directory, so that counts of an earlier server are not added to this one's; a reload keeps it.
    """
    path = Path(_settings.runtime_dir) / f"metrics-{os.getpid()}"
    if os.environ.get(_metric_files.VARIABLE) != str(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700, parents=True)
    return str(path)


def _raise_file_limit() -> None:
    """A stream is an open file, and shells commonly allow 1024 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


_raise_file_limit()
os.environ[_metric_files.VARIABLE] = _metrics_dir()


def on_starting(server: Any) -> None:
    """End, at once, with the supervisor."""
    end_with_parent(signal.SIGINT, _settings.supervisor_pid)
    _measure_grace_steadily()


def _measure_grace_steadily() -> None:
    """Gunicorn 27 measures the grace period by the time of day: a clock set forward meanwhile would cut all streams."""
    from gunicorn import arbiter

    arbiter.time = types.SimpleNamespace(sleep=time.sleep, monotonic=time.monotonic, time=time.monotonic)


def post_fork(server: Any, worker: Any) -> None:
    """Settings of a worker's interpreter, and its place for counters."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _logs.configure(_settings.log_level, _settings.log_format)
    _metric_files.take_room()


def post_worker_init(worker: Any) -> None:
    """Tell the application how many threads it may fill with streams."""
    worker.wsgi.extensions["paddle_ds"].limit(worker.cfg.threads - min(_SPARE_THREADS, worker.cfg.threads // 4))


def child_exit(server: Any, worker: Any) -> None:
    """Forget the gauges of a worker that is gone."""
    _metric_files.forget_gauges(Path(os.environ[_metric_files.VARIABLE]), worker.pid)


def on_exit(server: Any) -> None:
    """Remove the counters with the server."""
    shutil.rmtree(os.environ[_metric_files.VARIABLE], ignore_errors=True)
