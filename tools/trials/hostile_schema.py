"""Schemathesis on ``/openapi.json``, from an environment of its own.

It is a command here and no dependency: it brings a dozen packages that nothing else needs, and what it finds, it finds from
outside. An own generator from the same schemas would have to know what schemathesis knows: bodies, paths, queries and headers
that fit and that do not, methods that are not there, and checks of status, type and schema of each answer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import venv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

VERSION = "4.32.5"
#: a stream is described as the text that it is, OpenAPI 3.1 knows no events; schemathesis takes the schema for one of an event
_NOT_OURS = "ST108"
_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
#: requests of the phase that goes through every keyword of every schema, whatever number was asked for
_NUM_SYSTEMATIC = 1150
_NUM_OPERATIONS = 20
#: routes whose valid bodies change what is served
_CHANGES = ("/admin/models/load", "/admin/rollback", "/admin/drain")
_REQUEST_S = 120


@dataclasses.dataclass(frozen=True)
class SchemaResult:
    """What it sent, and what it found."""

    statuses: Counter[str]
    failures: list[str]


def program(directory: Path, *, install: bool) -> Path:
    """The command in the environment ``directory``, which ``install`` makes where it is not there.

    Raises:
        SystemExit: there is none, or it cannot be installed. The message says what to do.
    """
    found = directory / "bin" / "schemathesis"
    if found.is_file():
        return found
    if not install:
        raise SystemExit(
            f"{found} is not there; give --install once (it makes an environment and fetches schemathesis=={VERSION}), "
            "or leave this part out with --without schema"
        )
    venv.create(directory, with_pip=True)
    done = subprocess.run(
        [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", f"schemathesis=={VERSION}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not found.is_file():
        raise SystemExit(f"schemathesis=={VERSION} cannot be installed: {done.stderr.strip()[-500:]}")
    return found


def probe(command: Path, url: str, key: str, count: int, seed: int, directory: Path) -> SchemaResult:
    """About so many requests, with data that fit the document and with data that do not.

    Administration gets only what does not fit: a path that fits is an update like any other, and schemathesis finds one in the
    answer of ``/admin/status``.
    """
    per_operation = max(1, (count - _NUM_SYSTEMATIC) // _NUM_OPERATIONS)
    common = [str(command), "--no-color", "run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {key}"]
    common += ["--phases", "coverage,fuzzing", "--max-examples", str(per_operation), "--seed", str(seed), "--no-shrink"]
    common += ["--checks", _CHECKS, "--continue-on-failure", "--generation-database", "none", "--workers", "4"]
    common += ["--request-timeout", str(_REQUEST_S), "--suppress-health-check", "all"]
    parts = [
        ["--mode", "all", *(word for path in _CHANGES for word in ("--exclude-path", path))],
        ["--mode", "negative", *(word for path in _CHANGES for word in ("--include-path", path))],
    ]
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    for number, part in enumerate(parts):
        found = _run([*common, *part], directory, f"schemathesis-{number}.ndjson")
        statuses += found.statuses
        failures += found.failures
    return SchemaResult(statuses, failures)


def _run(arguments: Sequence[str], directory: Path, name: str) -> SchemaResult:
    report = directory / name
    environ = {**os.environ, "HOME": str(directory)}  # it keeps files of its own there and in the current directory
    done = subprocess.run(
        [*arguments, "--report", "ndjson", "--report-ndjson-path", str(report)],
        cwd=directory,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    if not report.is_file():
        raise SystemExit(f"schemathesis ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return read(report)


def read(report: Path) -> SchemaResult:
    """The report: every request with its status, and every check that failed."""
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    with report.open(encoding="utf-8") as lines:
        for line in lines:
            scenario = json.loads(line).get("ScenarioFinished")
            if scenario is None:
                continue
            recorder = scenario["recorder"]
            for interaction in recorder["interactions"].values():
                response = interaction.get("response")
                statuses[str(response["status_code"]) if response else "no answer"] += 1
            for check in (check for checks in recorder["checks"].values() for check in checks):
                failure = (check.get("failure_info") or {}).get("failure")
                if failure and failure.get("code") != _NOT_OURS:
                    failures.append(f"{recorder['label']}: {failure.get('title')}: {str(failure.get('message'))[:300]}")
    return SchemaResult(statuses, failures)
