"""Packaging. Explicit packages: folder name = import name everywhere, and nothing called ``serving`` or ``slim`` is installed."""

import re
from pathlib import Path

from setuptools import find_packages, setup

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
    "setuptools",
    "wheel",
]

setup(
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
        "paddle_ds_slim": ["py.typed"],
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
        "serving": ["flask>=3.0", "gunicorn>=23", "prometheus-client>=0.20", *HUB],
        "hub": HUB,
        "slim": ["paddleslim==2.6.0", *HUB],
        "dev": ["pytest>=8", "pytest-timeout", "hypothesis", "ruff", "mypy", "import-linter", "openai", "requests"],
    },
    entry_points={
        "console_scripts": ["paddle-ds = paddle_ds.cli.main:main"],
        # packages above paddle_ds add their commands here, so that the library never imports them
        "paddle_ds.commands": ["serve = paddle_ds_serving.command:serve"],
    },
)
