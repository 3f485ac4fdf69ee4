"""Feedback on disk: JSON lines in a directory that all HTTP workers share.

    feedback_dir
      ├── feedback.jsonl                            lines are added here
      ├── feedback-20260131T235959Z-000001.jsonl    full ones, renamed; never changed again, never deleted here
      └── .lock                                     held while a line is written, by one thread of one process

A line is on the disk, whole, before its sender is told so. What could only be written in part is cut off again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from paddle_ds.errors import PaddleDSError
from paddle_ds.logs import fields

_log = logging.getLogger(__name__)

FILE_NAME = "feedback.jsonl"
#: a file that would grow beyond this is put aside first
MAX_FILE_BYTES = 64 * 2**20


class FeedbackNotEnabled(PaddleDSError):
    """This server keeps no feedback."""

    code = "feedback_not_enabled"
    http_status = 404
    type = "not_found_error"


class FeedbackNotStored(PaddleDSError):
    """The disk is full, or the directory cannot be written to."""

    code = "feedback_not_stored"
    http_status = 507


class FeedbackFile:
    """Adds lines. Any number of threads and processes may do so."""

    def __init__(self, directory: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._directory = directory
        self._path = directory / FILE_NAME
        self._max_file_bytes = max_file_bytes
        self._in_process = threading.Lock()

    def add(self, line: bytes) -> None:
        """Write one line, which has no line break.

        Raises:
            FeedbackNotStored: it is not there, and nothing of it.
        """
        try:
            with self._locked():
                self._rotate(len(line) + 1)
                _append(self._path, line + b"\n")
        except OSError as error:
            _log.error("feedback.not_stored", extra=fields(error=str(error)))
            reason = error.strerror or type(error).__name__
            raise FeedbackNotStored(f"the feedback could not be stored: {reason}; nothing of it was kept") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._in_process:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)  # which unlocks

    def _rotate(self, num_bytes: int) -> None:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size == 0 or size + num_bytes <= self._max_file_bytes:
            return
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        number = 1
        while (aside := self._directory / f"feedback-{stamp}-{number:06}.jsonl").exists():
            number += 1
        self._path.rename(aside)


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        before = os.fstat(descriptor).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)  # some file systems find out only now that they are full
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)
