"""What is finished of a quantisation, on disk, so that an interrupted run goes on where it was.

    key.json                     what is being made: another source, recipe or text starts anew
    calibration.safetensors      the token ids
    layer-00003.safetensors      integers, norms, biases and folds of one layer; its errors in the header
    stream-00004.safetensors     what layer 4 reads, sequence by sequence: layers 0 to 3 are finished

Each file is written beside its name and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from paddle_ds.checkpoints.dtypes import Array
from paddle_ds.errors import QuantizationError
from paddle_ds.logs import fields

logger = logging.getLogger(__name__)


class WorkDirectory:
    """Files of one run. Use :meth:`open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, key: Mapping[str, Any]) -> WorkDirectory:
        """Take up the directory. Work of something else in it is removed; anything that is no work of ours is not.

        Raises:
            QuantizationError: it cannot be written, or holds other things.
        """
        work = cls(path)
        wanted = json.dumps(key, sort_keys=True, default=str)
        if path.exists() and work._key() is None and (not path.is_dir() or any(path.iterdir())):
            raise QuantizationError(f"{path}: there is something else; expected unfinished work, or nothing")
        if path.exists() and work._key() not in (None, wanted):
            logger.warning("quantize.restart", extra=fields(directory=str(path), because="of another source, recipe or text"))
            with work._writing():
                shutil.rmtree(path)
        with work._writing():
            path.mkdir(parents=True, exist_ok=True)
            (path / "key.json").write_text(wanted, encoding="utf-8")
        return work

    def _key(self) -> str | None:
        try:
            return (self.path / "key.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While this is open, no other run may use the directory.

        Raises:
            QuantizationError: another one does.
        """
        lock = self.path.with_name(f"{self.path.name}.lock")
        with self._writing():
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise QuantizationError(f"{self.path}: another run is at work there; wait for it, or name another OUT") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            file.close()

    def num_finished(self) -> int | None:
        """Layers that are finished; ``None`` before the first stream is there."""
        numbers = [int(file.stem.rpartition("-")[2]) for file in self.path.glob("stream-*.safetensors")]
        return max(numbers, default=None)

    def save_stream(self, num_finished: int, stream: list[Array]) -> None:
        """Keep what the next layer reads; an earlier stream is removed."""
        self._save(f"stream-{num_finished:05d}", {f"sequence-{i:05d}": values for i, values in enumerate(stream)}, {})
        for file in self.path.glob("stream-*.safetensors"):
            if file.stem != f"stream-{num_finished:05d}":
                file.unlink()

    def load_stream(self, num_finished: int) -> list[Array]:
        tensors, _ = self._load(f"stream-{num_finished:05d}")
        return [tensors[name] for name in sorted(tensors)]

    def save(self, name: str, tensors: Mapping[str, Array], record: Mapping[str, Any]) -> None:
        """Keep ``tensors`` and a JSON ``record`` under ``name``."""
        self._save(name, tensors, record)

    def has(self, name: str) -> bool:
        return (self.path / f"{name}.safetensors").is_file()

    def load(self, name: str) -> tuple[dict[str, Array], dict[str, Any]]:
        """What :meth:`save` kept.

        Raises:
            QuantizationError: it is damaged.
        """
        return self._load(name)

    def load_some(self, name: str, wanted: list[str]) -> dict[str, Array]:
        """Some tensors of ``name``, those that are there."""
        with self._reading(name) as file:
            there = set(file.keys())
            return {key: file.get_tensor(key) for key in wanted if key in there}

    def names(self, name: str) -> list[str]:
        """Tensors of ``name``."""
        with self._reading(name) as file:
            return list(file.keys())

    def remove(self) -> None:
        """The run is over, or not to be gone on with."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _save(self, name: str, tensors: Mapping[str, Array], record: Mapping[str, Any]) -> None:
        target = self.path / f"{name}.safetensors"
        partial = target.with_suffix(".partial")
        with self._writing():
            contiguous = {key: np.ascontiguousarray(values) for key, values in tensors.items()}
            try:
                save_file(contiguous, partial, {"record": json.dumps(record)})
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)

    def _load(self, name: str) -> tuple[dict[str, Array], dict[str, Any]]:
        with self._reading(name) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, json.loads(file.metadata()["record"])

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        path = self.path / f"{name}.safetensors"
        try:
            with safe_open(path, "np") as file:  # type: ignore[no-untyped-call]
                yield file
        except (OSError, SafetensorError, ValueError) as error:
            raise QuantizationError(f"{path}: cannot be read: {error}; remove {self.path} to start anew") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise QuantizationError(
                f"{self.path}: cannot be written: {error}; what is finished is kept, so the same command goes on from there"
            ) from error
