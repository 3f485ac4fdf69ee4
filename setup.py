"""Packaging. Explicit packages: folder name = import name everywhere, and nothing called ``serving`` or ``slim`` is installed.

With ``PADDLE_DS_PREBUILD=1`` a wheel brings the operators along, built for the Paddle in this environment (so pip needs
``--no-build-isolation``), and is a wheel of this platform. Without, it is pure Python, and builds them on first use.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "paddle_ds/__init__.py").read_text(encoding="utf-8")).group(1)

# Why the unusual pins: docs/installation.md
HUB = [
    "paddlenlp==3.0.0b4",
    "aistudio-sdk==0.2.6",
    "datasets<4",
    "pyarrow<20",
    "numpy<2",
    "safetensors>=0.6,<0.8",
    "decorator",
    "setuptools<81",
    "wheel",
]


def wants_prebuilt() -> bool:
    """Whether the operators are to be built now."""
    value = os.environ.get("PADDLE_DS_PREBUILD", "0")
    if value not in ("0", "1", ""):
        sys.exit(f"PADDLE_DS_PREBUILD={value!r} is wrong; expected 1 or 0")
    return value == "1"


class BuildPy(build_py):
    """Copies the package and, where asked for, builds its operators beside it."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            print("paddle-ds: an editable installation builds the operators on first use")
            return
        library = Path(self.build_lib).absolute()
        kernels = library / "paddle_ds" / "kernels"
        shutil.rmtree(kernels, ignore_errors=True)  # what an earlier build has left there would get into the wheel
        super().run()
        _copy_data(ROOT / "slim" / "recipes", library / "paddle_ds_slim" / "recipes")
        _copy_data(ROOT / "configs" / "devices", library / "paddle_ds" / "devices" / "profiles")
        if wants_prebuilt():
            _build_operators(library, kernels / "prebuilt")
        else:
            print("paddle-ds: without built operators (PADDLE_DS_PREBUILD is not 1); they are built on first use, with g++")


def _copy_data(source: Path, directory: Path) -> None:
    """YAML files that in a checkout lie beside the packages, where people look for them; in a wheel inside the package."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.yaml"):
        shutil.copyfile(file, directory / file.name)


def _build_operators(library: Path, directory: Path) -> None:
    # run from the copy, so that the key is that of the sources in the wheel; bytecode would get into it, too
    environ = {**os.environ, "PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "paddle_ds.kernels.build", "--prebuilt", str(directory)]
    done = subprocess.run(command, cwd=library, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(
            "paddle-ds: PADDLE_DS_PREBUILD is 1, but the operators cannot be built here (see above). This environment must have "
            "a compiler, Paddle, and what Paddle-DS requires; with pip, --no-build-isolation makes it this environment"
        )
    print(f"paddle-ds: with built operators, {Path(done.stdout.splitlines()[-1]).relative_to(library)}")


class WithOperators(Distribution):
    """Built operators make it a distribution of one platform."""

    def has_ext_modules(self) -> bool:
        return wants_prebuilt()


class BdistWheel(bdist_wheel):
    """Of one platform, but of every Python: the operators do not call it."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if wants_prebuilt() else (python, abi, platform)


setup(
    distclass=WithOperators,
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
    name="paddle-ds",
    version=VERSION,
    description="DeepSeek-R1 distilled models in INT8 on PaddlePaddle: load, quantise, serve",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(".", include=["paddle_ds", "paddle_ds.*"]),
        *find_packages("serving", include=["paddle_ds_serving", "paddle_ds_serving.*"]),
        *find_packages("slim", include=["paddle_ds_slim", "paddle_ds_slim.*"]),
    ],
    package_dir={
        "paddle_ds": "paddle_ds",
        "paddle_ds_serving": "serving/paddle_ds_serving",
        "paddle_ds_slim": "slim/paddle_ds_slim",
    },
    package_data={
        "paddle_ds": ["py.typed", "assets/tiny-r1/*", "kernels/csrc/*"],
        "paddle_ds_serving": ["py.typed"],
        "paddle_ds_slim": ["py.typed", "data/*.jsonl", "passport/data/*"],
    },
    install_requires=[
        "click>=8.1",
        "jinja2>=3.1",
        "msgspec>=0.18",
        "numpy>=1.26",
        "packaging>=23",
        "psutil>=5.9",
        "pyyaml>=6",
        "pyzmq>=26",
        "rich>=13",
        "tokenizers>=0.21",
    ],
    extras_require={
        # one of the two, never both: they provide the same module
        "cpu": ["paddlepaddle>=3.0,<4"],
        "gpu": ["paddlepaddle-gpu>=3.0,<4"],
        "serving": ["flask>=3.0", "gunicorn>=23", "prometheus-client>=0.20", "pyjwt[crypto]>=2.10", "redis>=5", *HUB],
        "hub": HUB,
        "slim": ["paddleslim==2.6.0", "scikit-learn", "scipy", "matplotlib", *HUB],
        "gguf": ["gguf>=0.17"],
        "tracing": ["opentelemetry-sdk>=1.45,<2", "opentelemetry-exporter-otlp-proto-http>=1.45,<2"],
        "dev": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "import-linter",
            "openai",
            "requests",
        ],
    },
    entry_points={
        "console_scripts": ["paddle-ds = paddle_ds.cli.main:main"],
        # packages above paddle_ds add their commands here, so that the library never imports them
        "paddle_ds.commands": [
            "serve = paddle_ds_serving.command:serve",
            "keys = paddle_ds_serving.access.command:keys",
            "update = paddle_ds_serving.update_command:update",
            "rollback = paddle_ds_serving.update_command:rollback",
            "drain = paddle_ds_serving.update_command:drain",
            "pull = paddle_ds_serving.update_command:pull",
            "status = paddle_ds_serving.update_command:status",
            "quantize = paddle_ds_slim.quantize_command:quantize",
            "eval = paddle_ds_slim.eval_command:evaluate",
            "convert = paddle_ds_slim.convert_command:convert",
        ],
    },
)
