"""``paddle-ds doctor`` before anything is installed: Python, its standard library, and the package's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIMIT_S = 60


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an empty environment, without even pip."""
    directory = tmp_path_factory.mktemp("bare") / "env"
    venv.create(directory, with_pip=False)
    return str(directory / "bin" / "python")


def call(*command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PADDLE_DS_", "VIRTUAL_ENV"))}
    return subprocess.run(command, env={**environ, **more}, capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd=cwd)


#: as a module of a package on the path, and as a file, beside which lies a module with the name of one of Python's own
WAYS = {
    "module": (["-m", "paddle_ds", "doctor"], {"PYTHONPATH": str(ROOT)}),
    "file": ([str(ROOT / "paddle_ds" / "cli" / "doctor.py")], {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_names_what_is_missing_and_the_command(python: str, tmp_path: Path, way: str) -> None:
    arguments, variables = WAYS[way]
    done = call(python, *arguments, cwd=tmp_path, **variables)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAIL  versions     paddlepaddle is not installed (needed for everything)" in done.stdout
    assert "click, jinja2, msgspec, numpy, packaging, psutil, pyyaml, pyzmq, rich, tokenizers are not installed" in done.stdout
    assert f"-m pip install '{ROOT}[cpu,serving]'" in done.stdout


def test_its_report_for_machines_has_all_that_needs_nothing(python: str, tmp_path: Path) -> None:
    arguments, variables = WAYS["module"]
    done = call(python, *arguments, "--json", cwd=tmp_path, **variables)
    found = json.loads(done.stdout)
    codes = {finding["code"] for finding in found}
    assert codes >= {"program", "pip_missing", "package_missing", "extra_missing", "check_skipped", "limits", "directory"}
    assert "check_failed" not in codes
    assert {finding["topic"] for finding in found} >= {"compiler", "huge-pages", "server", "model"}


def test_a_port_and_a_variable_are_looked_at_too(python: str, tmp_path: Path) -> None:
    arguments, variables = WAYS["module"]
    done = call(python, *arguments, "--json", "--host", "192.0.2.1", cwd=tmp_path, **variables, PADDLE_DS_STRICT="perhaps")
    codes = {finding["code"] for finding in json.loads(done.stdout)}
    assert codes >= {"address_wrong", "variable_wrong"}


def test_a_wrong_call_ends_with_2(python: str, tmp_path: Path) -> None:
    arguments, variables = WAYS["module"]
    done = call(python, *arguments, "--port", "many", cwd=tmp_path, **variables)
    assert (done.returncode, "'many' is not a whole number from 1 to 65535" in done.stderr) == (2, True)


def test_other_commands_say_where_to_look(python: str, tmp_path: Path) -> None:
    done = call(python, "-m", "paddle_ds", "serve", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "paddle-ds needs click, which is not installed" in done.stderr
    assert "python -m paddle_ds doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_click_alone_it_runs_as_well(python: str, tmp_path: Path) -> None:
    import click

    (tmp_path / "click").symlink_to(Path(click.__file__).parent)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = call(python, "-m", "paddle_ds", "doctor", cwd=tmp_path, PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "not all was checked: the module msgspec is not installed" in done.stdout


def test_the_checks_need_the_standard_library_alone() -> None:
    program = "import sys, paddle_ds.cli.doctor; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(done.stdout.split()) & {"click", "yaml", "msgspec", "psutil", "packaging", "numpy", "paddle", "rich"}
