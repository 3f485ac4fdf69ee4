"""One server for the tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.server import Server, serve


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model, served for the whole package."""
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running
