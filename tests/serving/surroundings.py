"""What a server stands on, made bad on purpose: a small disk, a clock that jumps, a slow network."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_SITECUSTOMIZE = """
import time
_real_s, _path = time.time, {path!r}
def _jumped_s():
    with open(_path) as file:
        return _real_s() + float(file.read())
time.time = _jumped_s
"""


class Clock:
    """The time of day of Python processes that have ``directory`` in their PYTHONPATH; monotonic clocks are left alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._path = directory / "ahead-s"
        self.jump(0.0)
        (directory / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(path=str(self._path)))

    def jump(self, ahead_s: float) -> None:
        """Set it to so many seconds from the real time."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(str(ahead_s))
        partial.replace(self._path)


class SmallDisk:
    """A file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Not a byte more goes in."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        self._ballast.unlink()


@functools.cache
def may_mount() -> bool:
    """Whether there can be small disks."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as parent:
        try:
            with small_disk(Path(parent) / "disk", 1 << 16):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextlib.contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[SmallDisk]:
    """A new directory with room for so much."""
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes},mode=0700"]
    subprocess.run(["mount", *options, "tmpfs", str(path)], check=True, capture_output=True)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


class SlowLine:
    """A port whose bytes arrive at another one ``delay_s`` later, and the same way back."""

    def __init__(self, port: int, delay_s: float) -> None:
        self._target = port
        self._delay_s = delay_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _end(self) -> None:
        self._server.close()
        while ours := asyncio.all_tasks() - {asyncio.current_task()}:  # again: a connection may just have been accepted
            for task in ours:
                task.cancel()
            await asyncio.gather(*ours, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        except (OSError, asyncio.CancelledError):
            pass  # a side is gone, or the line is taken down
        finally:
            back.close()
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self._loop.call_later(self._delay_s, writer.write, data)
        await asyncio.sleep(self._delay_s)
        with contextlib.suppress(OSError):
            writer.write_eof()
