"""The three hubs that PaddleNLP's downloader knows, each as a question about a file and a way to get it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paddle_ds.checkpoints.base import Progress
from paddle_ds.errors import HubError

_POLL_S = 0.2

#: what a broken connection costs at most; the downloaders' own 10 MB would be lost again and again on a bad line
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file that the hub has, and where the downloader keeps what has arrived of it."""

    nbytes: int | None
    partial: Path


@dataclasses.dataclass(frozen=True)
class Source:
    """One hub."""

    endpoint: str
    #: repository, file, cache -> the file, or ``None`` where there is no such file; raises OSError without an answer
    look_up: Callable[[str, str, Path], RemoteFile | None]
    #: repository, file, and keywords of ``resolve_file_path`` -> path in the cache
    resolve: Callable[..., str | None]


def open_source(name: str, timeout_s: float) -> Source:
    """Import PaddleNLP's downloader, quietly, and set it up for the hub called ``name``.

    Raises:
        HubError: PaddleNLP is not installed or does not import.
    """
    for variable in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        os.environ.setdefault(variable, str(max(1, round(timeout_s))))  # read when huggingface_hub is imported
    try:
        with _silence():
            from paddlenlp.utils.download import common, resolve_file_path
    except ImportError as error:
        raise HubError(
            f"a hub name needs PaddleNLP, which cannot be imported ({error}). "
            "Install it, or name a directory with the model's files"
        ) from error
    common.DEFAULT_DOWNLOAD_TIMEOUT = timeout_s
    common.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    make = {"bos": _bos, "huggingface": _huggingface, "aistudio": _aistudio}[name]
    return make(resolve_file_path, timeout_s)


def _bos(resolve: Callable[..., Any], timeout_s: float) -> Source:
    # by full name: the package has a function of the same name
    bos_download = importlib.import_module("paddlenlp.utils.download.bos_download")

    def look_up(name: str, file_name: str, cache: Path) -> RemoteFile | None:
        found = _unless_absent(bos_download.get_bos_file_metadata, bos_download.bos_url(name, file_name), timeout=timeout_s)
        return found and RemoteFile(found.size, cache / name / f"{file_name}.incomplete")

    return Source(bos_download.ENDPOINT, look_up, resolve)


def _huggingface(resolve: Callable[..., Any], timeout_s: float) -> Source:
    import huggingface_hub

    def look_up(name: str, file_name: str, cache: Path) -> RemoteFile | None:
        url = huggingface_hub.hf_hub_url(name, file_name)
        found = _unless_absent(huggingface_hub.get_hf_file_metadata, url, timeout=timeout_s)
        return found and RemoteFile(found.size, _blobs(cache, name) / f"{found.etag}.incomplete")

    def resolve_quietly(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PaddleNLP passes on options that are on their way out
            return resolve(*arguments, **options, from_hf_hub=True, etag_timeout=timeout_s)

    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    return Source(str(huggingface_hub.constants.ENDPOINT), look_up, resolve_quietly)


def _aistudio(resolve: Callable[..., Any], timeout_s: float) -> Source:
    aistudio = importlib.import_module("paddlenlp.utils.download.aistudio_hub_download")

    def look_up(name: str, file_name: str, cache: Path) -> RemoteFile | None:
        url = aistudio.aistudio_hub_url(name, file_name)
        found = _unless_absent(aistudio.get_aistudio_file_metadata, url, timeout=timeout_s)
        return found and RemoteFile(found.size, _blobs(cache, name) / f"{found.etag}.incomplete")

    return Source(aistudio.ENDPOINT, look_up, functools.partial(resolve, from_aistudio=True, etag_timeout=timeout_s))


def _blobs(cache: Path, name: str) -> Path:
    """Where huggingface_hub, and AI Studio's downloader after it, keep contents by their etag."""
    return cache / f"models--{name.replace('/', '--')}" / "blobs"


def _unless_absent(ask: Callable[..., Any], url: str, **options: Any) -> Any:
    """What ``ask`` says about ``url``; ``None`` where the hub says that there is no such file or repository."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    try:
        return ask(url, **options)
    except GatedRepoError:  # a kind of "not found" to huggingface_hub, but its text tells what to do
        raise
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what an import prints and warns about from the user's terminal."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def watched(progress: Progress | None, file_name: str, remote: RemoteFile) -> Iterator[None]:
    """Report how much of a file has arrived until the block ends. The downloader's own bars are off meanwhile."""
    if progress is None:
        yield
        return
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    total_bytes = remote.nbytes or 0
    finished = threading.Event()

    def report() -> None:
        while not finished.wait(_POLL_S):
            with contextlib.suppress(OSError):
                progress(file_name, remote.partial.stat().st_size, total_bytes)

    thread = threading.Thread(target=report, name="hub-progress", daemon=True)
    disable_progress_bars()
    thread.start()
    try:
        yield
        progress(file_name, total_bytes, total_bytes)
    finally:
        finished.set()
        thread.join()
        enable_progress_bars()
