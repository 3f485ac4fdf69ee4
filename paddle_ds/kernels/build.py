"""Builds the operators in ``csrc/`` once and keeps the library: cached by sources, flags, compiler and Paddle version.

A wheel may bring a library along (``make wheel``). It is looked up first, and by everything but the compiler, for which the
machine then has no need:

    paddle_ds/kernels/prebuilt/<prebuilt_key>/libpaddle_ds_ops.so      from a wheel
    <cache directory>/kernels/<Toolchain.key>/libpaddle_ds_ops.so      built on first use

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
PREBUILT = SOURCES.parent / "prebuilt"
LIBRARY = "libpaddle_ds_ops.so"

#: no instruction set beyond the architecture's oldest here: see _VARIANTS
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-DNDEBUG")
#: namespace -> what the compiler is told, and query vectors that attention holds in registers at once
_X86_VARIANTS = {
    "avx512": (("-march=x86-64-v4", "-mprefer-vector-width=512"), 8),
    "avx2": (("-march=x86-64-v3",), 4),
}
#: for the one file that has these instructions by name; it runs where the processor has them
_VNNI = ("-march=x86-64-v4", "-mavx512vnni")


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
        return _digest(self.compiler_version, self.paddle_version, *self.extra_flags)


def prebuilt_key(paddle_version: str) -> str:
    """Names a library that a wheel brings along: equal keys, and it fits whatever compiler is here, or none."""
    return _digest("prebuilt", paddle_version)


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in (*parts, platform.machine(), *_FLAGS):
        digest.update(part.encode() + b"\0")
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:20]


def prebuilt(paddle_version: str) -> Path | None:
    """The library that came with the package, where it was made from these sources for this Paddle and this architecture."""
    path = PREBUILT / prebuilt_key(paddle_version) / LIBRARY
    return path if path.exists() else None


def library(cache_dir: Path) -> Path:
    """The library that came with the package, else the one in ``cache_dir``, which is built where it is not there yet.

    Raises:
        KernelError: no compiler, no room, or the compiler refuses; the message has its last lines.
    """
    import paddle

    brought = prebuilt(paddle.__version__)
    if brought is not None:
        return brought
    try:
        toolchain = Toolchain.find()
    except KernelError as error:
        unfit = f"; those in {PREBUILT} are for another Paddle than {paddle.__version__}, or other sources"
        raise KernelError(error.message + (unfit if PREBUILT.exists() else "")) from error
    return built(toolchain, cache_dir / "kernels" / toolchain.key())


def built(toolchain: Toolchain, directory: Path) -> Path:
    """The library in ``directory``; builds it where it is not there. Processes that ask at the same time build it once.

    Raises:
        KernelError: no room, or the compiler refuses; the message has its last lines.
    """
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
        # and not libpaddle.so: a C++ host of an exported program has libpaddle_inference.so in its place, and these beside it
        linked = [str(libs / name) for name in ("libdnnl.so.3", "libiomp5.so", "libphi_core.so", "libphi.so", "libcommon.so")]
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
        more = {
            "ops.cc": for_paddle,
            "export_ops.cc": for_paddle,
            "vnni_products.cc": list(_VNNI) if platform.machine() == "x86_64" else [],
        }.get(source.name, [])
        yield [*base, *more, "-c", str(source), "-o", str(output)], output


def variants() -> list[tuple[str, tuple[str, ...], int]]:
    """Name, flags and tile of each variant of the vector loops on this architecture, best first."""
    best = [(name, flags, tile) for name, (flags, tile) in _X86_VARIANTS.items()] if platform.machine() == "x86_64" else []
    return [*best, ("baseline", (), 2)]


def main() -> None:
    """Build into DIR and print the library's path. For a sanitizer, with extra flags; or to bring it along in a wheel (setup.py).

    python -m paddle_ds.kernels.build DIR [FLAG ...]
    python -m paddle_ds.kernels.build --prebuilt DIR
    """
    toolchain = Toolchain.find()
    if sys.argv[1] == "--prebuilt":
        path = built(toolchain, Path(sys.argv[2]) / prebuilt_key(toolchain.paddle_version))
        (path.parent / "lock").unlink()
    else:
        toolchain = dataclasses.replace(toolchain, extra_flags=tuple(sys.argv[2:]))
        path = built(toolchain, Path(sys.argv[1]) / "kernels" / toolchain.key())
    print(path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-12:])
        raise KernelError(f"the compiler failed with status {done.returncode}:\n{last}")


if __name__ == "__main__":
    main()
