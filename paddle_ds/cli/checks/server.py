"""What a server needs of the system besides memory: directories it may write to, short paths of sockets, a free port."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
from collections.abc import Iterator

from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding, Level

_TOPIC = "server"
DEFAULT_PORT = 8000
#: the system's limit for the path of a socket, less the zero at its end
_LONGEST_SOCKET_PATH = 107
#: the socket in the runtime directory, with the longest process number
_SOCKET = "serve-4194304/engine.sock"
#: built operators take some, a fetched checkpoint far more
_WANTED_DISK_BYTES = 100 << 20


def directories(context: Context) -> Iterator[Finding]:
    """The runtime directory and the cache: made where they are not there yet, so what counts is the part of the path that is."""
    current = context.settings()
    for name, path in (("runtime", current.runtime_dir), ("cache", os.path.expanduser(current.cache_dir))):
        existing = os.path.abspath(path)
        while not os.path.exists(existing):
            existing = os.path.dirname(existing)
        fix = f"set PADDLE_DS_{name.upper()}_DIR to a directory you may write to"
        if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
            yield Finding("directory_unwritable", "directories", "error", f"{name}: {path} cannot be written", fix)
            continue
        yield Finding("directory", "directories", "ok", f"{name}: {path}")
        yield from _space(name, existing)
        if name == "runtime":
            yield from _sockets(path, existing)


def _space(name: str, existing: str) -> Iterator[Finding]:
    free = shutil.disk_usage(existing).free
    if free < _WANTED_DISK_BYTES:
        text = f"{name}: {free / 1e6:.0f} MB are free in {existing}"
        fix = f"make room, or set PADDLE_DS_{name.upper()}_DIR to another disk"
        yield Finding("disk_full", "directories", "warning", text, fix)


def _sockets(path: str, existing: str) -> Iterator[Finding]:
    length = len(os.fsencode(os.path.join(path, _SOCKET)))
    if length > _LONGEST_SOCKET_PATH:
        text = (
            f"runtime: {path} is too long a path: that of a server's socket in it would have {length} bytes, and the system "
            f"allows {_LONGEST_SOCKET_PATH}"
        )
        yield Finding("socket_path_too_long", "directories", "error", text, "set PADDLE_DS_RUNTIME_DIR to a shorter path")
    mode = os.stat(existing).st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
        text = f"runtime: others may write to {existing} (mode {stat.S_IMODE(mode):o}), and put sockets of their own there"
        yield Finding("directory_open", "directories", "warning", text, f"chmod go-w {existing}")


def address(context: Context) -> Iterator[Finding]:
    """Whether ``--host`` and ``--port`` can be listened on, in the way ``paddle-ds serve`` asks before it starts anything."""
    host, port = context.asked.host, context.asked.port or DEFAULT_PORT
    where = f"{host} port {port}"
    try:
        family, kind, protocol, _, name = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(name)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            # a server that runs already is no fault; that a port was asked for and is taken, is
            level: Level = "error" if context.asked.port else "warning"
            text = f"{where} is taken{_by_whom(port)}"
            yield Finding("port_taken", _TOPIC, level, text, "stop that process, or choose another port with --port")
        else:
            fix = (
                "give --host an address of this machine"
                if error.errno != errno.EACCES
                else "choose a port above 1023 with --port"
            )
            yield Finding("address_wrong", _TOPIC, "error", f"cannot listen on {where}: {error.strerror or error}", fix)
        return
    yield Finding("port_free", _TOPIC, "ok", f"{where} is free")


def _by_whom(port: int) -> str:
    """Only the administrator is told of other users' processes."""
    try:
        import psutil

        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr and connection.laddr.port == port:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f" by process {connection.pid}: {command[:120]}"
    except ModuleNotFoundError:
        return ""
    except psutil.Error:
        pass
    return " by a process that the system does not name to you"
