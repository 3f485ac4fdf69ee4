"""A child ends with its parent, whenever that dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]

_CHILD = """
import os, signal, sys, time
from paddle_ds.ipc.parent import end_with_parent
{first}
end_with_parent(signal.SIGKILL, int(sys.argv[1]))
{then}
time.sleep(600)
"""
#: starts the child, tells its id, and ends: at once, or when the child says so
_PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE, start_new_session=True)
print(child.pid, flush=True)
if sys.argv[2] == "later":
    child.stdout.readline()
"""
_ORPHANED = "parent = int(sys.argv[1])\nwhile os.getppid() == parent: time.sleep(0.01)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells children of Linux only")
@pytest.mark.parametrize(
    ("first", "then", "when"),
    [("", "print('ready', flush=True)", "later"), (_ORPHANED, "", "at once")],
    ids=["while it runs", "before it could ask for that"],
)
def test_a_child_ends_with_its_parent(first: str, then: str, when: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _PARENT, _CHILD.format(first=first, then=then), when]
    told = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, timeout=60).stdout
    pid = int(told)
    try:
        psutil.Process(pid).wait(timeout=20)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        psutil.Process(pid).kill()
        pytest.fail("it lives on")
