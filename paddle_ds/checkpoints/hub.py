"""Fetching a checkpoint by name, with PaddleNLP's downloader.

Which hub is asked is ``PADDLE_DS_HUB_SOURCE``; where that is, PaddleNLP's own variables say, read at its import:

    source        endpoint variable    default                            file
    bos           PPNLP_ENDPOINT       Baidu's object storage             {endpoint}/models/community/{name}/{file}
    huggingface   HF_ENDPOINT          huggingface.co                     {endpoint}/{name}/resolve/main/{file}
    aistudio      AISTUDIO_ENDPOINT    git.aistudio.baidu.com             {endpoint}/api/v1/repos/{name}/contents/{file}

The downloader can continue a file, but gives up when a connection breaks in the middle, and does not compare lengths.
Around it: continue as long as something arrives, throw away what is longer than it should be, and remember what is
complete, so that a second start needs neither the network nor PaddleNLP, whose import takes seconds.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from paddle_ds.checkpoints.base import Progress
from paddle_ds.checkpoints.hub_sources import RemoteFile, Source, open_source, watched
from paddle_ds.checkpoints.listing import read_index
from paddle_ds.checkpoints.native import COMPANIONS
from paddle_ds.errors import HubError
from paddle_ds.logs import fields
from paddle_ds.settings import Settings

log = logging.getLogger(__name__)

#: asked for in this order; an index before the single file, because a repository of shards has no single file
_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "model_state.pdparams.index.json",
    "model_state.pdparams",
)

#: attempts without a single new byte before a broken transfer is given up
_MAX_FRUITLESS = 5


def fetch(name: str, settings: Settings, progress: Progress | None = None, source: Source | None = None) -> Path:
    """Directory with the checkpoint ``name`` (``org/name``), downloaded where it is not there yet.

    Args:
        progress: called with file name, bytes so far and bytes in all; without it the downloader draws bars of its own.
        source: the hub to ask; the one that ``settings`` name if not given.

    Raises:
        HubError: no PaddleNLP, no network, no such model, or a transfer that keeps breaking; says what can be done.
    """
    cache = Path(settings.cache_dir).expanduser() / "hub" / settings.hub_source
    receipt = cache / f"{name.replace('/', '--')}.complete.json"
    known = _read_receipt(receipt)
    if known is not None:
        return known
    log.info("hub.fetching", extra=fields(model=name, source=settings.hub_source))
    source = source or open_source(settings.hub_source, settings.hub_timeout_s)
    fetcher = _Fetcher(name, cache, source, settings, progress)
    cache.mkdir(parents=True, exist_ok=True)
    found = [fetcher.require(["config.json"]), fetcher.require(_WEIGHTS)]
    if found[-1].suffix == ".json":
        found += [fetcher.require([shard]) for shard in sorted(set(read_index(found[-1]).values()))]
    found += [companion for file_name in COMPANIONS if (companion := fetcher.find(file_name)) is not None]
    directory = fetcher.only_directory(found)
    content = {"directory": str(directory), "files": sorted(file.name for file in found)}
    receipt.write_text(json.dumps(content), encoding="utf-8")
    log.info("hub.fetched", extra=fields(model=name, source=settings.hub_source, directory=str(directory)))
    return directory


def _read_receipt(receipt: Path) -> Path | None:
    """The directory of an earlier complete download that is still there."""
    try:
        content = json.loads(receipt.read_text(encoding="utf-8"))
        directory = Path(content["directory"])
        return directory if all((directory / name).is_file() for name in content["files"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Fetcher:
    """Files of one repository."""

    def __init__(self, name: str, cache: Path, source: Source, settings: Settings, progress: Progress | None) -> None:
        self._name = name
        self._cache = cache
        self._source = source
        self._hub = settings.hub_source
        self._progress = progress

    def require(self, file_names: Iterable[str]) -> Path:
        """The first of ``file_names`` that the hub has."""
        for file_name in file_names:
            found = self.find(file_name)
            if found is not None:
                return found
        raise self._error(f"has no {' or '.join(file_names)}")

    def find(self, file_name: str) -> Path | None:
        """The file in the cache, fetched if it is not there; ``None`` where the hub has no such file."""
        try:
            remote = self._source.look_up(self._name, file_name, self._cache)
        except (OSError, KeyError, ValueError) as error:
            raise self._error(f"does not answer about {file_name}: {_reason(error)}") from error
        if remote is None:
            return None
        with watched(self._progress, file_name, remote):
            return self._complete(file_name, remote)

    def only_directory(self, files: list[Path]) -> Path:
        """Where all of ``files`` are. Hubs with revisions keep each in a directory of its own."""
        directories = {file.parent for file in files}
        if len(directories) > 1:
            raise self._error("published another revision meanwhile: start again to fetch that")
        return directories.pop()

    def _complete(self, file_name: str, remote: RemoteFile) -> Path:
        fruitless = 0
        while True:
            _drop_overlong(remote)
            before = _size(remote.partial)
            reason = "it sent nothing"
            try:
                found = self._source.resolve(self._name, file_name, cache_dir=str(self._cache), resume_download=True)
                if found is not None and remote.nbytes in (None, Path(found).stat().st_size):
                    return Path(found)
                if found is not None:
                    reason = f"{Path(found).stat().st_size} bytes instead of {remote.nbytes}"
                    Path(found).unlink()
            except OSError as error:
                reason = _reason(error)
            arrived = _size(remote.partial)
            fruitless = 0 if arrived > before else fruitless + 1
            if fruitless >= _MAX_FRUITLESS:
                kept = f"; {arrived} bytes are kept, and the next start continues there" if arrived else ""
                raise self._error(f"broke off sending {file_name}: {reason}{kept}")
            log.warning("hub.interrupted", extra=fields(file=file_name, bytes=arrived, of=remote.nbytes, reason=reason))
            time.sleep(min(2**fruitless / 4, 4.0))

    def _error(self, what: str) -> HubError:
        return HubError(
            f"'{self._name}': the hub '{self._hub}' at {self._source.endpoint} {what}. Without a hub, place the "
            "model's files (config.json, weights, tokenizer) into a directory and name that directory instead"
        )


def _drop_overlong(remote: RemoteFile) -> None:
    """A hub that cannot continue a file sends it from the start again, and the downloader appends that."""
    if remote.nbytes is not None and _size(remote.partial) >= remote.nbytes:
        remote.partial.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: the downloader wraps it in advice about directory names."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]
