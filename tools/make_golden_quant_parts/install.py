"""The environment of the third-party quantisers; needs nothing but Python and pip.

DIR                      virtual environment with the packages of REQUIREMENTS
DIR/act-order            older releases (ACT_ORDER), put before the others on PYTHONPATH where they are wanted
DIR/llama.cpp            the converter of llama.cpp, taken from the source archive of its Python bindings
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import venv
from pathlib import Path

REQUIREMENTS = (
    "torch==2.13.0",
    "transformers==5.17.0",
    "compressed-tensors==0.19.0",
    "llmcompressor==0.14.0.1",
    "gptqmodel==7.5.0",
    "gguf==0.19.0",
    "sentencepiece",  # the converter imports it
    "safetensors==0.8.0",
    "numpy==2.2.6",
)

#: the last releases that wrote ``weight_g_idx``; they work with the torch and transformers above, whatever they ask for
ACT_ORDER = ("compressed-tensors==0.16.0", "llmcompressor==0.11.0")

#: its source archive holds all of llama.cpp
BINDINGS = "llama_cpp_python==0.3.36"

_CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py")


def python_of(directory: Path) -> Path:
    """The interpreter of an environment."""
    return directory / "bin" / "python"


def act_order_of(directory: Path) -> Path:
    """The folder with the older releases."""
    return directory / "act-order"


def converter_of(directory: Path) -> Path:
    """The folder with ``convert_hf_to_gguf.py``."""
    return directory / "llama.cpp"


def install(directory: Path) -> None:
    """Make what is not there yet. A step that failed leaves no mark and is repeated by the next call."""
    mark = directory / ".ready"
    if mark.exists():
        return
    if not python_of(directory).exists():
        venv.create(directory, with_pip=True)
    _pip(directory, "install", *REQUIREMENTS)
    _pip(directory, "install", "--no-deps", "--upgrade", "--target", act_order_of(directory), *ACT_ORDER)
    if not converter_of(directory).exists():
        _fetch_converter(directory)
    mark.touch()


def _pip(directory: Path, *arguments: str | Path) -> None:
    command: list[str | Path] = [python_of(directory), "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    subprocess.run(command, check=True)


def _fetch_converter(directory: Path) -> None:
    download = directory / "download"
    _pip(directory, "download", "--no-deps", "--no-binary", ":all:", "-d", download, BINDINGS)
    (archive,) = download.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(download, members=_converter_members(packed), filter="data")
    (source,) = download.glob("*/vendor/llama.cpp")
    source.rename(converter_of(directory))
    shutil.rmtree(download)


def _converter_members(packed: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The few files of llama.cpp that convert, out of thousands: ``<release>/vendor/llama.cpp/<one of _CONVERTER>``."""
    return [member for member in packed if member.name.split("/")[1:3] == ["vendor", "llama.cpp"] and _wanted(member.name)]


def _wanted(name: str) -> bool:
    parts = name.split("/")
    return len(parts) > 3 and parts[3] in _CONVERTER
