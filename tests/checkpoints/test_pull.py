"""``pull``: only what has changed comes over the line, a broken transfer goes on, and the link moves when all is well."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paddle_ds.checkpoints import pull as pull_module
from paddle_ds.checkpoints import remote_files
from paddle_ds.checkpoints.manifest import verify, weight_version
from paddle_ds.checkpoints.pull import Pulled, pull
from paddle_ds.checkpoints.safetensors_file import SafetensorsFile
from paddle_ds.engine.assets import EMBEDDED_MODEL
from paddle_ds.errors import CheckpointError, CheckpointNotFound, ConfigError, CorruptFileError, HubError, ManifestMismatchError

NORM = "model.norm.weight"


class Site:
    """A web server over a directory, with faults to order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ranges = True
        #: weight bytes after which connections break, once each
        self.breaks: list[int] = []
        self.status = 200
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = self.directory / handler.path.lstrip("/")
        if not path.is_file() or self.status != 200:
            handler.send_error(self.status if self.status != 200 else 404)
            return
        content, asked = path.read_bytes(), handler.headers.get("range")
        if asked and self.ranges:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            content = content[int(begin) : int(end) + 1 if end else None]
        handler.send_response(206 if asked and self.ranges else 200)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        if self.breaks and len(content) > self.breaks[0]:
            content = content[: self.breaks.pop(0)]
        handler.wfile.write(content)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def change(self, name: str) -> None:
        """Another value in a tensor, and its hash in the manifest."""
        path = self.directory / "model.safetensors"
        file = SafetensorsFile(path)
        begin, num_bytes = file.span(name)
        file.close()
        content = bytearray(path.read_bytes())
        content[begin] ^= 1
        path.write_bytes(content)
        manifest = json.loads((self.directory / "manifest.json").read_text())
        manifest["tensors"][name]["sha256"] = hashlib.sha256(content[begin : begin + num_bytes]).hexdigest()
        (self.directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote_files, "_PAUSE_S", 0.0)
    made = Site(Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "site")))
    yield made
    made.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "models" / "r1"


def weight_bytes(site: Site) -> int:
    return (site.directory / "model.safetensors").stat().st_size


def test_the_first_pull_brings_everything(site: Site, out: Path) -> None:
    done = pull(site.url, out)
    assert (done.unchanged, done.reused_tensors) == (False, 0)
    assert done.weight_version == weight_version(out) == weight_version(EMBEDDED_MODEL)
    assert verify(out)
    assert {path.name for path in EMBEDDED_MODEL.iterdir()} == {path.name for path in out.iterdir()}
    assert out.is_symlink()


def test_the_second_brings_what_has_changed(site: Site, out: Path) -> None:
    first = pull(site.url, out)
    site.change(NORM)
    done = pull(site.url, out)
    assert done.reused_tensors == done.num_tensors - 1
    others = sum((site.directory / name).stat().st_size for name in ("manifest.json", "config.json", "tokenizer.json"))
    assert done.fetched_bytes < others + 40_000 < weight_bytes(site) / 10  # the header and a tensor of 768 bytes
    assert verify(out)
    assert out.resolve().name == done.weight_version != first.weight_version
    assert verify(out.with_name("r1.versions") / first.weight_version)


def test_the_same_again_moves_nothing(site: Site, out: Path) -> None:
    pull(site.url, out)
    before = out.resolve()
    done = pull(site.url, out)
    assert (done.unchanged, out.resolve()) == (True, before)
    assert not list(before.parent.glob(".partial"))


def test_a_line_that_breaks_is_mended(site: Site, out: Path) -> None:
    site.breaks = [100, 70_000, 30_000]
    pull(site.url, out)
    assert site.breaks == []
    assert verify(out)


def test_what_a_broken_pull_has_brought_is_not_fetched_again(site: Site, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_MAX_STALLS", 0)
    blocks = remote_files.RemoteFiles.blocks

    def cut(self: Any, name: str, begin: int, num_bytes: int | None) -> Iterator[bytes]:
        if begin > 2_000_000:
            raise HubError("the line is gone")
        return blocks(self, name, begin, num_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(remote_files.RemoteFiles, "blocks", cut)
        with pytest.raises(HubError):
            pull(site.url, out)
    assert not out.exists()
    done = pull(site.url, out)
    assert done.fetched_bytes < weight_bytes(site) - 1_900_000 + 150_000
    assert verify(out)


def test_a_server_without_ranges_sends_it_all(site: Site, out: Path) -> None:
    site.ranges = False
    pull(site.url, out)
    site.change(NORM)
    done = pull(site.url, out)
    assert done.reused_tensors == 0
    assert done.fetched_bytes > weight_bytes(site)
    assert verify(out)


def test_what_is_not_as_the_manifest_says_never_gets_the_link(site: Site, out: Path) -> None:
    pull(site.url, out)
    before = out.resolve()
    manifest = json.loads((site.directory / "manifest.json").read_text())
    manifest["tensors"][NORM]["sha256"] = "0" * 64
    (site.directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestMismatchError):
        pull(site.url, out)
    assert out.resolve() == before
    assert not list(before.parent.glob(".partial"))


def test_header_and_manifest_must_agree(site: Site, out: Path) -> None:
    manifest = json.loads((site.directory / "manifest.json").read_text())
    manifest["tensors"][NORM]["shape"] = [10**12]
    (site.directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptFileError, match="header"):
        pull(site.url, out)


def test_the_last_versions_are_kept(site: Site, out: Path) -> None:
    versions = []
    for _ in range(4):
        site.change(NORM)
        site.change("lm_head.weight_scale")
        (site.directory / "generation_config.json").write_text(json.dumps({"n": len(versions)}))
        versions.append(pull(site.url, out, keep=2).weight_version)
    assert {path.name for path in out.resolve().parent.glob("wv_*")} == set(versions[-2:])


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda site, out: (site.directory / "manifest.json").unlink(), CheckpointNotFound),
        (lambda site, out: setattr(site, "status", 403), HubError),
        (lambda site, out: (site.directory / "manifest.json").write_text("{"), CorruptFileError),
        (lambda site, out: (site.directory / "model.safetensors").unlink(), HubError),
        (lambda site, out: out.mkdir(parents=True), CheckpointError),
        (lambda site, out: out.parent.write_text(""), CheckpointError),
    ],
    ids=["no-manifest", "forbidden", "garbage", "no-weights", "a-directory", "unwritable"],
)
def test_what_cannot_be_pulled_is_an_error(site: Site, out: Path, prepare: Callable[..., None], error: type[Exception]) -> None:
    prepare(site, out)
    with pytest.raises(error):
        pull(site.url, out)
    assert not out.is_symlink()


@pytest.mark.parametrize("url", ["file:///etc", "r1", "ftp://host/r1", "http://"])
def test_only_the_web_is_a_url(url: str, out: Path) -> None:
    with pytest.raises(ConfigError):
        pull(url, out)


def test_nobody_there_is_a_hub_error(site: Site, out: Path) -> None:
    url = site.url
    site.directory = Path("/nowhere")
    with pytest.raises(CheckpointNotFound):
        pull(url, out)
    with pytest.raises(HubError):
        pull("http://127.0.0.1:1/r1", out)


def test_one_pull_at_a_time(site: Site, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[CheckpointError] = []
    place = pull_module._Pull._place

    def inside(self: Any, version: str) -> bool:
        with pytest.raises(CheckpointError, match="another") as error:
            pull(site.url, out)
        refused.append(error.value)
        return place(self, version)

    monkeypatch.setattr(pull_module._Pull, "_place", inside)
    assert isinstance(pull(site.url, out), Pulled)
    assert len(refused) == 1


def test_a_full_disk_leaves_everything_as_it_was_and_the_next_try_goes_on(
    site: Site, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pull(site.url, out)
    site.change(NORM)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"the disk is full \(No space left on device\)") as refused:
            pull(site.url, out)
    assert str(out.with_name("r1.versions") / ".partial") in str(refused.value)
    assert out.resolve().name == first.weight_version == weight_version(out)
    assert verify(out)
    assert pull(site.url, out).weight_version == weight_version(out) != first.weight_version


def test_versions_are_kept_in_the_order_of_their_pulls_whatever_the_clock(
    site: Site, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = []
    for hours in (24, 0, -24):  # the clock was wrong, and is set back twice
        now_ns = time.time_ns() + hours * 3600 * 10**9
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
            pulled.append(pull(site.url, out, keep=2).weight_version)
        site.change(NORM if len(pulled) == 1 else "model.embed_tokens.weight")
    kept = {path.name for path in out.with_name("r1.versions").glob("wv_*")}
    assert kept == set(pulled[1:])
