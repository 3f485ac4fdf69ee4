"""Wheels: pure Python by default, with operators and for one platform where that is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import paddle
import pytest

from paddle_ds.kernels import build

ROOT = Path(__file__).parents[2]
#: answers with a version, and makes every file it is told to
COMPILER = """#!/bin/sh
echo 1.2.3
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
exit 0
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, which building leaves its traces in."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, clone)
    for name in ("paddle_ds", "serving", "slim"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    return clone


def wheel(tree: Path, out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """``pip wheel .``, in this environment and without a network."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-index", "--no-deps", "--no-build-isolation"]
    environ = {**os.environ, "PIP_CONFIG_FILE": os.devnull, **variables}
    command += ["--disable-pip-version-check", "--wheel-dir", str(out), "."]
    return subprocess.run(
        command, cwd=tree, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def test_a_wheel_is_pure_unless_asked_otherwise_and_the_build_says_so(tree: Path, tmp_path: Path) -> None:
    stale = tree / "build" / "lib" / "paddle_ds" / "kernels" / "prebuilt" / "old" / build.LIBRARY
    stale.parent.mkdir(parents=True)
    stale.touch()
    done = wheel(tree, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "without built operators (PADDLE_DS_PREBUILD is not 1); they are built on first use" in done.stdout
    (made,) = tmp_path.iterdir()
    assert made.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(made).namelist()
    assert "paddle_ds/kernels/csrc/ops.cc" in names
    assert [name for name in names if "prebuilt" in name or name.endswith(".pyc")] == []


def test_a_wheel_brings_operators_where_asked_to(tree: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(COMPILER, encoding="utf-8")
    compiler.chmod(0o755)
    done = wheel(tree, tmp_path / "out", PADDLE_DS_PREBUILD="1", CXX=str(compiler))
    assert done.returncode == 0, done.stdout
    (made,) = (tmp_path / "out").iterdir()
    assert made.name.endswith(f"-py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}.whl")
    brought = f"paddle_ds/kernels/prebuilt/{build.prebuilt_key(paddle.__version__)}/{build.LIBRARY}"
    names = zipfile.ZipFile(made).namelist()
    assert [name for name in names if "prebuilt" in name] == [brought]
    assert [name for name in names if name.endswith(".pyc")] == []
    assert f"with built operators, {brought}" in done.stdout


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PADDLE_DS_PREBUILD": "1", "CXX": "no-such-compiler"}, "no C++ compiler 'no-such-compiler' in PATH"),
        ({"PADDLE_DS_PREBUILD": "1", "CXX": "false"}, "the operators cannot be built here"),
        ({"PADDLE_DS_PREBUILD": "yes"}, "PADDLE_DS_PREBUILD='yes' is wrong; expected 1 or 0"),
    ],
    ids=["no compiler", "a compiler that fails", "another value"],
)
def test_operators_that_were_asked_for_and_cannot_be_built_end_the_build(
    tree: Path, tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    done = wheel(tree, tmp_path, **variables)
    assert done.returncode != 0
    assert reason in done.stdout
    assert list(tmp_path.iterdir()) == []
