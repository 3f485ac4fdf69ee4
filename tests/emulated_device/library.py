"""Compiles the plug-in once for each set of sources, compiler and Paddle."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = "libemulated_device.so"

# no -ffast-math and no contraction: results are those of plain loops, on every machine the same
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    "-ffp-contract=off",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
)
# worker threads outlive Paddle's handle on the library, so it must stay mapped; a symbol that Paddle declares but does not
# export (3.3.1: PD_ScalarGetDataType) is to be found out here, not when it is called
_LINK_FLAGS = ("-shared", "-pthread", "-Wl,-z,nodelete", "-Wl,-z,defs", "-Wl,-z,now")


def build(cache_dir: Path | None = None) -> Path:
    """The directory to give to Paddle as ``CUSTOM_DEVICE_ROOT``; compiled where it is not there yet.

    Args:
        cache_dir: where libraries are kept; by default in the user's cache.

    Raises:
        RuntimeError: the compiler refuses; the message is its own.
    """
    directory = (cache_dir or _user_cache()) / _key()
    target = directory / "plugins" / LIBRARY
    if target.exists():
        return target.parent
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory / "lock"):
        if not target.exists():
            _compile(target, directory)
    return target.parent


def paddle_dir() -> Path:
    """Where Paddle is installed; does not load it."""
    spec = importlib.util.find_spec("paddle")
    assert spec is not None, "Paddle is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddle_ds_tests" / "emulated_device"


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "g++")


def _key() -> str:
    digest = hashlib.sha256(repr((_FLAGS, _LINK_FLAGS, _compiler(), platform.machine())).encode())
    digest.update(subprocess.run([*_compiler(), "--version"], capture_output=True, check=True).stdout)
    for path in [paddle_dir() / "version" / "__init__.py", *sorted(SOURCES.glob("*.cc")), *sorted(SOURCES.glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(target: Path, directory: Path) -> None:
    paddle = paddle_dir()
    include = [f"-isystem{paddle / 'include'}", f"-isystem{paddle / 'include' / 'third_party'}"]
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        sources = sorted(SOURCES.glob("*.cc"), key=lambda path: -path.stat().st_size)
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]
        commands = [
            [*_compiler(), *_FLAGS, *include, "-c", str(source), "-o", str(output)]
            for source, output in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_run, commands))
        libraries = [
            str(path) for path in (paddle / "libs" / "libphi_core.so", paddle / "libs" / "libcommon.so") if path.exists()
        ]
        partial = Path(scratch) / LIBRARY
        _run([*_compiler(), *_LINK_FLAGS, "-o", str(partial), *map(str, objects), *libraries])
        partial.rename(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
