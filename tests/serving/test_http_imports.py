"""HTTP workers never load Paddle."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["paddle_ds_serving.app", "paddle_ds_serving.wsgi"])
def test_importing_the_application_does_not_import_paddle(module):
    code = f"import sys, {module}; sys.exit(any(name.split('.')[0] in ('paddle', 'paddlenlp') for name in sys.modules))"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == 0
