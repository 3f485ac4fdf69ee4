"""Plug-in libraries that teach Paddle a device: where Paddle looks for them, and why one of them was not taken. No paddle here.

Paddle loads every ``lib*.so`` of the directory ``CUSTOM_DEVICE_ROOT`` (one path, not a list) or, without that variable, of
``paddle_custom_device/`` beside the installed package. One that cannot be opened makes ``import paddle`` raise; one that is no
plug-in is passed over with a line in its log.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "CUSTOM_DEVICE_ROOT"
#: the function by which Paddle knows a plug-in
_ENTRY = "InitPlugin"
_LOAD_LIMIT_S = 60


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A library that may be a plug-in; ``problem`` says why Paddle cannot use it, as far as that can be seen from outside."""

    path: Path
    problem: str = ""


def directories(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Where Paddle looks, first the one it looks at first."""
    given = (os.environ if environ is None else environ).get(VARIABLE, "")
    if given:
        return [Path(given)]
    spec = importlib.util.find_spec("paddle")
    root = Path(spec.origin).parent.parent if spec and spec.origin else None
    return [root / "paddle_custom_device"] if root else []


def find(environ: Mapping[str, str] | None = None) -> list[Plugin]:
    """Every library in those directories. Each is tried in a process of its own, so a bad one harms nobody."""
    found = []
    for directory in directories(environ):
        if not directory.is_dir():
            continue
        found += [Plugin(path, _problem(path)) for path in sorted(directory.glob("lib*.so"))]
    return found


def where(environ: Mapping[str, str] | None = None) -> str:
    """A sentence on where plug-ins are looked for and what is there."""
    environ = os.environ if environ is None else environ
    places = directories(environ)
    if environ.get(VARIABLE):
        listed = ", ".join(str(place) for place in places)
        missing = [str(place) for place in places if not place.is_dir()]
        if missing:
            return f"{VARIABLE} is {listed}, but {missing[0]} is not a directory"
        names = [path.name for place in places for path in sorted(place.glob("lib*.so"))]
        return f"{VARIABLE} is {listed}, which holds {', '.join(names) or 'no lib*.so'}"
    place = places[0] if places else None
    if place is not None and place.is_dir():
        names = [path.name for path in sorted(place.glob("lib*.so"))]
        return f"{VARIABLE} is not set; {place} holds {', '.join(names) or 'no lib*.so'}"
    return f"{VARIABLE} is not set, and there is no directory paddle_custom_device beside the installed Paddle"


def _problem(path: Path) -> str:
    """Why the library at ``path`` cannot be loaded as a plug-in; empty where it can."""
    if not os.access(path, os.R_OK):
        return "it cannot be read: permission denied"
    # with Paddle's own libraries in the process, as it will be, and lazily bound, as Paddle does it; but no other plug-in
    program = (
        "import ctypes, os, sys, tempfile\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "with tempfile.TemporaryDirectory() as empty:\n"
        f"    os.environ[{VARIABLE!r}] = empty\n"
        "    import paddle\n"
        "try:\n"
        "    library = ctypes.CDLL(sys.argv[1], mode=os.RTLD_LAZY)\n"
        "except OSError as error:\n"
        "    sys.exit('it cannot be loaded: ' + str(error))\n"
        f"if not hasattr(library, {_ENTRY!r}):\n"
        f"    sys.exit('it has no function {_ENTRY}, so it is not a plug-in of Paddle')\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, str(path), *sys.path],
            capture_output=True,
            text=True,
            check=False,
            timeout=_LOAD_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"loading it takes more than {_LOAD_LIMIT_S} s"
    if done.returncode < 0:
        return f"loading it ends the process with signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else f"loading it ends with status {done.returncode}") if done.returncode else ""
