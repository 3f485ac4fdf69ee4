"""The peers' own virtual environment, and llama.cpp from its sources.

    venv/                        what requirements.txt pins; llama-cpp-python without libraries of its own
    work/llama.cpp/src-<v>/      the source archive of llama-cpp-python, unpacked; llama.cpp in vendor/
    work/llama.cpp/build-<v>/    libraries, llama-server, llama-bench, llama-batched-bench, for this processor

A file in the environment marks each part that is complete for these pins, so that a later call does nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
import tarfile
from pathlib import Path

from .shell import StepFailed, run_step

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_BINDINGS = "llama-cpp-python"
_SHARED = ("diskcache", "jinja2", "numpy", "protobuf", "safetensors", "sentencepiece", "tokenizers", "transformers")
_TARGETS = ("llama", "mtmd", "llama-server", "llama-bench", "llama-batched-bench")
_CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where things are, whether or not they exist yet."""

    work: Path
    venv: Path
    jobs: int = 2

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    @property
    def llama_source(self) -> Path:
        """llama.cpp as the bindings' source archive carries it."""
        return self.work / "llama.cpp" / f"src-{pins()[_BINDINGS]}" / "vendor" / "llama.cpp"

    @property
    def llama_build(self) -> Path:
        return self.work / "llama.cpp" / f"build-{pins()[_BINDINGS]}"

    @property
    def llama_bin(self) -> Path:
        """Libraries and programs of llama.cpp."""
        return self.llama_build / "bin"


def pins(path: Path = REQUIREMENTS) -> dict[str, str]:
    """Version by name, in the order of the file.

    Raises:
        ValueError: a line is not ``name==version``.
    """
    result = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        wanted = line.partition("#")[0].strip()
        if not wanted:
            continue
        name, equals, version = wanted.partition("==")
        if not equals or not version:
            raise ValueError(f"{path}: {wanted!r} is not name==version")
        result[name] = version
    return result


def install_all(places: Places) -> dict[str, str]:
    """Make what is missing. Returns why a peer is not available, by its name; empty where all is well."""
    reasons = {}
    try:
        _install_common(places)
    except StepFailed as error:
        return {"llama.cpp": str(error), "openvino": str(error)}
    for name, install in (("llama.cpp", _install_llama), ("openvino", _install_openvino)):
        try:
            install(places)
        except StepFailed as error:
            reasons[name] = str(error)
    return reasons


def _install_common(places: Places) -> None:
    """The environment with torch, which both converters use."""
    mark = _mark(places, "common", ["torch", *_SHARED])
    if mark.exists():
        return
    print("installing the peers (once)", flush=True)
    if not places.python.exists():
        run_step("venv", [sys.executable, "-m", "venv", places.venv], places.logs)
    _pip(places, "pip-torch", [_pinned("torch")])
    _pip(places, "pip-common", [_pinned("torch"), *map(_pinned, _SHARED)])
    mark.touch()


def _install_llama(places: Places) -> None:
    mark = _mark(places, "llama", [_BINDINGS])
    if mark.exists() and (places.llama_bin / "llama-server").exists():
        return
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            raise StepFailed(f"{tool} is not installed; Debian and Ubuntu have it in the package of that name")
    archive = _fetch_source(places)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure: list[str | Path] = ["cmake", "-S", places.llama_source, "-B", places.llama_build, *generator, *_CMAKE_OPTIONS]
    run_step("llama-configure", configure, places.logs)
    build: list[str | Path] = ["cmake", "--build", places.llama_build, "-j", str(places.jobs), "--target", *_TARGETS]
    run_step("llama-build", build, places.logs)
    # the bindings take their libraries from LLAMA_CPP_LIB_PATH: one build serves them and the programs
    options: list[str | Path] = ["--no-deps", "--force-reinstall", archive]
    _pip(places, "pip-llama", options, {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"})
    mark.touch()


def _fetch_source(places: Places) -> Path:
    """The source archive, fetched and unpacked."""
    folder = places.work / "llama.cpp"
    if not list(folder.glob(f"*-{pins()[_BINDINGS]}.tar.gz")):
        download: list[str | Path] = [places.python, "-m", "pip", "download", "--no-deps", "--no-binary", _BINDINGS]
        run_step("llama-source", [*download, "-d", folder, _pinned(_BINDINGS)], places.logs)
    (archive,) = folder.glob(f"*-{pins()[_BINDINGS]}.tar.gz")
    target = places.llama_source.parents[1]
    if not (places.llama_source / "CMakeLists.txt").exists():
        shutil.rmtree(target, ignore_errors=True)
        with tarfile.open(archive) as packed:
            packed.extractall(folder / "unpacked", filter="data")
        (inside,) = (folder / "unpacked").iterdir()
        inside.rename(target)
        shutil.rmtree(folder / "unpacked")
    return archive


def _install_openvino(places: Places) -> None:
    names = [name for name in pins() if name != _BINDINGS]
    mark = _mark(places, "openvino", names)
    if mark.exists():
        return
    _pip(places, "pip-openvino", list(map(_pinned, names)))
    mark.touch()


def _pip(places: Places, name: str, arguments: list[str | Path], environ: dict[str, str] | None = None) -> None:
    command: list[str | Path] = [places.python, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    run_step(name, command, places.logs, environ)


def _pinned(name: str) -> str:
    return f"{name}=={pins()[name]}"


def _mark(places: Places, part: str, names: list[str]) -> Path:
    wanted = "\n".join(map(_pinned, names)) + "\n".join(_CMAKE_OPTIONS + _TARGETS if part == "llama" else ())
    return places.venv / f".bench-peers-{part}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
