"""The first requests of a kind may come at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RACE = '''
import sys, threading, types
from paddle_ds_serving.protocol.body import decode

SOURCE = """
from __future__ import annotations
import msgspec
class Inner(msgspec.Struct):
    x: int
    y: list[str] | None = None
class Body(msgspec.Struct):
    a: Inner
    b: list[Inner] | None = None
    c: dict[str, float] | None = None
    d: int | float | None = None
"""
sys.setswitchinterval(1e-6)
for number in range(400):
    module = types.ModuleType(f"kinds{number}")
    sys.modules[module.__name__] = module  # where its annotations are looked up
    exec(SOURCE, vars(module))
    together = threading.Barrier(8)

    def read(kind=module.Body, together=together):
        together.wait()
        assert decode(b'{"a": {"x": 1, "y": ["k"]}, "b": [{"x": 2}], "c": {"q": 1.5}, "d": 3}', kind, {}).b[0].x == 2

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("done")
'''


def test_first_bodies_of_a_kind_that_come_together_are_all_read() -> None:
    environ = {"PYTHONPATH": f"{ROOT}:{ROOT / 'serving'}"}
    done = subprocess.run([sys.executable, "-c", RACE], env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
