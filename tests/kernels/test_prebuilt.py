"""Operators that a wheel brings along: found without a compiler, taken before a build, and left alone where they do not fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import paddle
import pytest

from paddle_ds.kernels import build, native

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=str(native.why_unavailable()))

ROOT = Path(__file__).parents[2]
#: one product on the operators, or why there are none
PROBE = """
import numpy as np, paddle
from paddle_ds.kernels import native
reason = native.why_unavailable()
if reason is None:
    layer = native.NativeInt8Linear(np.ones((64, 64), np.int8), np.ones(64, np.float32), None)
    print(native.library().path, layer(paddle.ones([1, 64])).numpy()[0, 0])
else:
    print(reason)
"""


class Installed:
    """A copy of the package in a directory of its own, as a wheel leaves it."""

    def __init__(self, directory: Path) -> None:
        self.site, self.cache, self.no_programs = directory / "site", directory / "cache", directory / "bin"
        self.no_programs.mkdir()
        self.package = shutil.copytree(ROOT / "paddle_ds", self.site / "paddle_ds", ignore=shutil.ignore_patterns("*.pyc"))

    def bring(self, paddle_version: str = paddle.__version__) -> Path:
        """Put this machine's library where a wheel has it."""
        target = self.package / "kernels" / "prebuilt" / build.prebuilt_key(paddle_version) / build.LIBRARY
        target.parent.mkdir(parents=True)
        return Path(shutil.copy(native.library().path, target))

    def run(self, *arguments: str, compiler: bool = False) -> str:
        environ = {**os.environ, "PYTHONPATH": str(self.site), "PADDLE_DS_CACHE_DIR": str(self.cache)}
        for name in ("CXX", "PADDLE_DS_OPERATORS"):
            environ.pop(name, None)
        if not compiler:
            environ["PATH"] = str(self.no_programs)
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, cwd=self.no_programs)
        return done.stdout


@pytest.fixture
def install(tmp_path: Path) -> Callable[[], Installed]:
    return lambda: Installed(tmp_path)


def test_a_library_that_came_along_needs_no_compiler(install: Callable[[], Installed]) -> None:
    installed = install()
    brought = installed.bring()
    assert installed.run("-c", PROBE).split() == [str(brought), "64.0"]
    report = installed.run("-m", "paddle_ds", "doctor")
    assert "none is needed" in report
    assert f"{brought} (came with the package)" in report


def test_it_is_taken_before_one_is_built(install: Callable[[], Installed]) -> None:
    installed = install()
    brought = installed.bring()
    assert installed.run("-c", PROBE, compiler=True).split() == [str(brought), "64.0"]
    assert not installed.cache.exists()


def test_one_for_another_paddle_is_left_alone_and_that_is_said(install: Callable[[], Installed]) -> None:
    installed = install()
    installed.bring("3.0.99")
    said = installed.run("-c", PROBE)
    assert "no C++ compiler 'g++' in PATH" in said
    assert f"are for another Paddle than {paddle.__version__}" in said


def test_one_of_other_sources_is_left_alone(install: Callable[[], Installed]) -> None:
    installed = install()
    installed.bring()
    with (installed.package / "kernels" / "csrc" / "ops.cc").open("a") as file:
        file.write("// changed\n")
    assert "no C++ compiler" in installed.run("-c", PROBE)


def test_without_one_and_without_a_compiler_the_reason_is_said(install: Callable[[], Installed]) -> None:
    said = install().run("-c", PROBE)
    assert "no C++ compiler 'g++' in PATH; install g++" in said
    assert "another Paddle" not in said
