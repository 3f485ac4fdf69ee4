"""Builds the operators in ``csrc/`` once and keeps the library: cached by sources, flags, compiler and Paddle version.

The loops over rows are compiled once for each instruction set, so one library serves every processor of its architecture.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from paddle_ds.errors import KernelError

SOURCES = Path(__file__).resolve().parent / "csrc"
LIBRARY = "libpaddle_ds_ops.so"

#: no instruction set beyond the architecture's oldest here: see _VARIANTS
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-DNDEBUG")
#: namespace -> what the compiler is told, and query vectors that attention holds in registers at once
_X86_VARIANTS = {
    "avx512": (("-march=x86-64-v4", "-mprefer-vector-width=512"), 8),
    "avx2": (("-march=x86-64-v3",), 4),
}


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """What a library is built with, and for."""

    compiler: tuple[str, ...]
    compiler_version: str
    paddle_version: str
    paddle_dir: Path
    extra_flags: tuple[str, ...] = ()

    @classmethod
    def find(cls) -> Toolchain:
        """The compiler in ``CXX`` (default ``g++``) and the installed Paddle.

        Raises:
            KernelError: there is no compiler.
        """
        # CXX may hold more than a name, such as "ccache g++"
        compiler = tuple(shlex.split(os.environ.get("CXX") or "g++"))
        if shutil.which(compiler[0]) is None:
            raise KernelError(f"no C++ compiler {compiler[0]!r} in PATH; install g++ (apt-get install g++)")
        version = subprocess.run([*compiler, "-dumpfullversion"], capture_output=True, text=True, check=False).stdout.strip()
        import paddle

        return cls(compiler, version, paddle.__version__, Path(paddle.__file__).parent)

    def key(self) -> str:
        """Names what would be built: equal keys, equal library."""
        digest = hashlib.sha256()
        for part in (self.compiler_version, self.paddle_version, platform.machine(), *_FLAGS, *self.extra_flags):
            digest.update(part.encode() + b"\0")
        for source in sorted(SOURCES.iterdir()):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
        digest.update(Path(__file__).read_bytes())
        return digest.hexdigest()[:20]


def library(cache_dir: Path, toolchain: Toolchain | None = None) -> Path:
    """The built library; builds it where it is not in ``cache_dir`` yet. Processes that ask at the same time build it once.

    Raises:
        KernelError: no compiler, no room, or the compiler refuses; the message has its last lines.
    """
    toolchain = toolchain or Toolchain.find()
    directory = cache_dir / "kernels" / toolchain.key()
    target = directory / LIBRARY
    if target.exists():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / "lock"):
            if not target.exists():
                _build(toolchain, target)
    except OSError as error:
        raise KernelError(f"{directory}: operators cannot be built here: {error}") from error
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(toolchain: Toolchain, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        jobs = list(_compilations(toolchain, Path(scratch)))
        with ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as pool:
            list(pool.map(_run, (command for command, _ in jobs)))
        objects = [str(output) for _, output in jobs]
        libs = toolchain.paddle_dir / "libs"
        # Paddle's own OpenMP runtime by path, and no -fopenmp here: a second runtime would fight the first for the cores
        linked = [str(libs / "libdnnl.so.3"), str(libs / "libiomp5.so"), str(toolchain.paddle_dir / "base" / "libpaddle.so")]
        partial = Path(scratch) / LIBRARY
        sanitizers = [flag for flag in toolchain.extra_flags if "sanitize" in flag]
        _run([*toolchain.compiler, "-shared", *sanitizers, "-o", str(partial), *objects, *linked])
        partial.rename(target)


def _compilations(toolchain: Toolchain, scratch: Path) -> Iterator[tuple[list[str], Path]]:
    base = [*toolchain.compiler, *_FLAGS, *toolchain.extra_flags, f"-I{SOURCES}"]
    for name, flags, tile in variants():
        output = scratch / f"vector_{name}.o"
        define = [f"-DPDS_ISA={name}", f'-DPDS_NAME="{name}"', f"-DPDS_TILE={tile}"]
        yield [*base, *flags, *define, "-x", "c++", "-c", str(SOURCES / "vector_kernels.inc.cc"), "-o", str(output)], output
    include = toolchain.paddle_dir / "include"
    # NO_PYTHON: a machine need not have Python's headers, which Debian keeps in a package of their own
    for_paddle = [f"-isystem{include}", f"-isystem{include / 'third_party'}", "-DPADDLE_WITH_CUSTOM_KERNEL", "-DPADDLE_NO_PYTHON"]
    for source in sorted(SOURCES.glob("*.cc")):
        if source.name.endswith(".inc.cc"):
            continue
        output = scratch / f"{source.stem}.o"
        more = for_paddle if source.name == "ops.cc" else []
        yield [*base, *more, "-c", str(source), "-o", str(output)], output


def variants() -> list[tuple[str, tuple[str, ...], int]]:
    """Name, flags and tile of each variant of the vector loops on this architecture, best first."""
    best = [(name, flags, tile) for name, (flags, tile) in _X86_VARIANTS.items()] if platform.machine() == "x86_64" else []
    return [*best, ("baseline", (), 2)]


def main() -> None:
    """``python -m paddle_ds.kernels.build DIR [FLAG ...]``: build into DIR with extra flags and print the library's path."""
    toolchain = dataclasses.replace(Toolchain.find(), extra_flags=tuple(sys.argv[2:]))
    print(library(Path(sys.argv[1]), toolchain))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-12:])
        raise KernelError(f"the compiler failed with status {done.returncode}:\n{last}")


if __name__ == "__main__":
    main()
