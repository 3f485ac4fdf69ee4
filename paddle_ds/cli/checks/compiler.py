"""Whether the operators can be built here, or came with the package."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from paddle_ds.cli.checks import pins
from paddle_ds.cli.checks.context import Context
from paddle_ds.cli.checks.finding import Finding
from paddle_ds.kernels.build import prebuilt, variants

_TOPIC = "compiler"
_ANSWER_LIMIT_S = 30
_SLOW = "operators of our own cannot be built, and the reference is slow"


def check(context: Context) -> Iterator[Finding]:
    """The compiler in ``CXX`` (default ``g++``): is it there, and does it know what the operators are built with?"""
    try:
        command = shlex.split(os.environ.get("CXX") or "g++")
    except ValueError as error:
        text = f"CXX={os.environ['CXX']!r} cannot be taken apart: {error}"
        yield Finding("compiler_setting_wrong", _TOPIC, "error", text, "correct or unset CXX")
        return
    if shutil.which(command[0]) is not None:
        yield _answer(command)
    elif brought(context) is not None:
        text = f"no {command[0]}, and none is needed: the package has brought built operators"
        yield Finding("compiler_not_needed", _TOPIC, "ok", text)
    else:
        yield Finding("no_compiler", _TOPIC, "warning", f"no {command[0]}: {_SLOW}", "apt-get install g++")


def brought(context: Context) -> Path | None:
    """The library that came with the package for the installed Paddle."""
    version = next((version for version in map(context.version, pins.PADDLE_BUILDS) if version), None)
    return prebuilt(version) if version else None


def _answer(command: list[str]) -> Finding:
    version = _run([*command, "--version"])
    if isinstance(version, str):
        return Finding("compiler_unusable", _TOPIC, "warning", f"{shlex.join(command)} {version}: {_SLOW}", "apt-get install g++")
    name = (version.stdout.splitlines() or [command[0]])[0]
    for variant, flags, _ in variants():
        tried = _run([*command, "-std=c++17", "-fopenmp", *flags, "-fsyntax-only", "-x", "c++", os.devnull])
        if isinstance(tried, str):
            text = f"{name} refuses what the loops for {variant} are built with ({' '.join(flags)}): {tried}"
            fix = "use g++ from 11 on, and name it by CXX (apt-get install g++-12; export CXX=g++-12)"
            return Finding("compiler_unusable", _TOPIC, "warning", text, fix)
    return Finding("compiler", _TOPIC, "ok", name)


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | str:
    """What it did, or a sentence on how it failed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_ANSWER_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"does not answer within {_ANSWER_LIMIT_S} s"
    except OSError as error:
        return f"cannot be started ({error.strerror})"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"ends with status {done.returncode}" + (f" ({lines[0]})" if lines else "")
    return done
