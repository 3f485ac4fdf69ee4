"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public test data too large for the repository: ``$PADDLE_DS_TEST_DATA`` or ``../shared/data``."""
    path = Path(os.environ.get("PADDLE_DS_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no test data at {path}; set PADDLE_DS_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """``tests/golden``."""
    return ROOT / "tests" / "golden"
