"""A checkpoint from a URL, and of its next version only what has changed.

    r1 ─► r1.versions/wv_3f1c09aa52de        a link, replaced by renaming: readers see one version or the other
    r1.versions/
      ├── wv_9b0e77d1c4aa/                   earlier versions; the last ones are kept
      ├── wv_3f1c09aa52de/
      └── .partial/                          what a broken pull has so far; the next one goes on from there

The remote ``manifest.json`` names the hash of each tensor. A tensor that a version here has is copied from there; others are
fetched by ranges of their file. Everything is verified before the link moves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from paddle_ds.checkpoints.dtypes import NUMPY_DTYPES
from paddle_ds.checkpoints.manifest import (
    FILE_NAME,
    ManifestTensor,
    hash_span,
    parse_manifest,
    read_manifest,
    verify,
    weight_version,
)
from paddle_ds.checkpoints.native import COMPANIONS
from paddle_ds.checkpoints.remote_files import RangesRefused, RemoteFiles
from paddle_ds.checkpoints.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from paddle_ds.errors import CheckpointError, CheckpointNotFound, CorruptFileError, TruncatedFileError

#: fetched whole each time: they are small, and no manifest names them
_OTHER_FILES = ("config.json", *COMPANIONS, "model.safetensors.index.json", "passport.json", "passport.html")
_COPY_BYTES = 4 << 20

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Pulled:
    """What a pull has brought."""

    path: Path
    weight_version: str
    #: the version that was there already; nothing was moved
    unchanged: bool
    fetched_bytes: int
    #: tensors that were copied from an earlier version, and all
    reused_tensors: int
    num_tensors: int


@dataclasses.dataclass(frozen=True)
class _Local:
    """A tensor in a file that is here."""

    path: Path
    begin: int
    num_bytes: int


def pull(url: str, out: Path, *, keep: int = 7, timeout_s: float = 30.0, progress: Progress = lambda text: None) -> Pulled:
    """Bring the checkpoint at ``url`` (a directory with ``manifest.json``) to ``out``, and keep the last ``keep`` versions.

    Raises:
        HubError: the server does not answer, refuses, or the line keeps breaking. What has come is kept for another try.
        CheckpointError: ``out`` is something else than a link that a pull has made; what came is not what the manifest says; the
            disk refuses.
        ConfigError: ``url`` is none.
    """
    remote = RemoteFiles(url, timeout_s)
    out = out.expanduser().absolute()
    if out.exists() and not out.is_symlink():
        raise CheckpointError(f"{out}: already there, and not a link that `pull` made; name another place")
    versions = out.with_name(f"{out.name}.versions")
    try:
        versions.mkdir(parents=True, exist_ok=True)
        with _only_one(versions):
            return _Pull(remote, out, versions, progress).run(keep)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{out}: the disk is full ({error.strerror}); earlier versions are as they were. Make room and pull again; what "
                f"has come already is kept in {versions / '.partial'}, which may be removed"
            ) from error
        raise CheckpointError(f"{out}: cannot be written: {error}") from error


class _Pull:
    def __init__(self, remote: RemoteFiles, out: Path, versions: Path, progress: Progress) -> None:
        self._remote = remote
        self._out = out
        self._versions = versions
        self._progress = progress
        self._partial = versions / ".partial"
        self._here = _tensors_here(versions)
        self._reused = 0

    def run(self, keep: int) -> Pulled:
        content = self._remote.get(FILE_NAME)
        if content is None:
            raise CheckpointNotFound(f"{self._remote.url}{FILE_NAME}: no such file; `pull` needs a checkpoint with a manifest")
        manifest = parse_manifest(content, self._remote.url + FILE_NAME)
        self._partial.mkdir(exist_ok=True)
        by_file: dict[str, dict[str, ManifestTensor]] = {}
        for tensor in manifest.values():
            by_file.setdefault(tensor.file, {})[tensor.name] = tensor
        self._clear(set(by_file))
        for name, tensors in by_file.items():
            self._progress(name)
            self._bring(name, tensors)
        for name in _OTHER_FILES:
            other = self._remote.get(name)
            if other is not None:
                (self._partial / name).write_bytes(other)
        (self._partial / FILE_NAME).write_bytes(content)
        self._progress("verifying")
        try:
            verify(self._partial)
        except CheckpointError:
            shutil.rmtree(self._partial)  # resuming from a wrong file would end here again
            raise
        version = weight_version(self._partial)
        unchanged = self._place(version)
        _prune(self._versions, keep, version)
        return Pulled(self._out, version, unchanged, self._remote.received_bytes, self._reused, len(manifest))

    def _clear(self, wanted: set[str]) -> None:
        """Of what an earlier try has left, only weight files of this manifest are of use."""
        for path in self._partial.iterdir():
            if path.name not in wanted:
                path.unlink()

    def _place(self, version: str) -> bool:
        """Move the new version to its place and the link to it. Whether it was there already and linked."""
        place = self._versions / version
        if place.exists():
            shutil.rmtree(self._partial)
        else:
            os.replace(self._partial, place)
        _mark_newest(place)
        target = Path(self._versions.name) / version
        if self._out.is_symlink() and self._out.readlink() == target:
            return True
        link = self._versions / ".link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        os.replace(link, self._out)
        return False

    def _bring(self, name: str, tensors: dict[str, ManifestTensor]) -> None:
        """One weight file: its header, then each tensor from here or from there."""
        path = self._partial / name
        try:
            header = self._header(name)
        except RangesRefused:
            self._bring_whole(name)
            return
        spans = _spans(header, tensors, self._remote.url + name)
        resumes = path.exists()
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            file.truncate(len(header) + sum(size for _, size in spans.values()))
            file.write(header)
            for tensor, (offset, size) in spans.items():
                begin = len(header) + offset
                wanted = tensors[tensor]
                if resumes and hash_span(file.fileno(), begin, size, path) == wanted.sha256:  # an earlier try has brought it
                    continue
                file.seek(begin)
                local = self._here.get(wanted.sha256)
                if local is not None and local.num_bytes == size and _copy(local, file):
                    self._reused += 1
                    continue
                file.seek(begin)
                for block in self._remote.blocks(name, begin, size):
                    file.write(block)
            file.flush()
            os.fsync(file.fileno())

    def _header(self, name: str) -> bytes:
        length = self._remote.read(name, 0, 8)
        (num_bytes,) = struct.unpack("<Q", length)
        if num_bytes > MAX_HEADER_BYTES:
            raise CorruptFileError(f"{self._remote.url}{name}: header of {num_bytes} bytes; expected at most {MAX_HEADER_BYTES}")
        return length + self._remote.read(name, 8, num_bytes)

    def _bring_whole(self, name: str) -> None:
        """From a server without ranges: all of it, each time."""
        with (self._partial / name).open("wb") as file:
            for block in self._remote.blocks(name, 0, None):
                file.write(block)


def _tensors_here(versions: Path) -> dict[str, _Local]:
    """Every tensor of every version, by its hash."""
    found: dict[str, _Local] = {}
    for directory in versions.glob("wv_*"):
        manifest = read_manifest(directory) or {}
        for name in {tensor.file for tensor in manifest.values()}:
            with contextlib.suppress(CheckpointError), contextlib.closing(SafetensorsFile(directory / name)) as file:
                for tensor in manifest.values():
                    if tensor.file == name and tensor.name in file.tensors:
                        found[tensor.sha256] = _Local(directory / name, *file.span(tensor.name))
    return found


def _spans(header: bytes, tensors: Mapping[str, ManifestTensor], where: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each tensor after the header.

    Raises:
        CorruptFileError: the header and the manifest do not agree on what is in the file and how long it is.
    """
    try:
        entries = json.loads(header[8:])
        entries.pop("__metadata__", None)
        found = {name: (entry["data_offsets"][0], _num_bytes(tensors[name])) for name, entry in entries.items()}
        if set(found) != set(tensors):
            raise ValueError("tensors of the manifest are missing")
        expected = 0
        for begin, size in sorted(found.values()):
            if begin != expected:
                raise ValueError(f"a tensor begins at {begin}; expected {expected}")
            expected += size
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{where}: the header is not what the manifest says: {error!r}") from error
    return found


def _num_bytes(tensor: ManifestTensor) -> int:
    return math.prod(tensor.shape) * NUMPY_DTYPES[tensor.dtype].itemsize


def _copy(local: _Local, file: IO[bytes]) -> bool:
    """Whether the bytes could be read; the hash is compared at the end, with all others."""
    try:
        with local.path.open("rb") as source:
            source.seek(local.begin)
            left = local.num_bytes
            while left:
                block = source.read(min(left, _COPY_BYTES))
                if not block:
                    raise TruncatedFileError(f"{local.path}: ends early")
                file.write(block)
                left -= len(block)
    except (FileNotFoundError, TruncatedFileError):
        return False
    return True


def _mark_newest(place: Path) -> None:
    """Also where it was there before, and where the clock was set back since another came."""
    others = [path.stat().st_mtime_ns for path in place.parent.glob("wv_*") if path != place]
    newest_ns = max([time.time_ns(), *(stamp_ns + 1 for stamp_ns in others)])
    os.utime(place, ns=(newest_ns, newest_ns))


def _prune(versions: Path, keep: int, current: str) -> None:
    """Remove all but the newest ``keep`` versions; never the current one."""
    found = sorted(versions.glob("wv_*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found[keep:]:
        if path.name != current:
            shutil.rmtree(path)


@contextlib.contextmanager
def _only_one(versions: Path) -> Iterator[None]:
    """Raises :class:`CheckpointError` while another pull works there; a lock ends with its process."""
    descriptor = os.open(versions / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CheckpointError(f"{versions}: another `pull` is at work there") from None
    try:
        yield
    finally:
        os.close(descriptor)
