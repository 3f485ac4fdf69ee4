"""The versions that are known to work together, as in setup.py, and requirements that packages have without declaring them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from paddle_ds.cli.checks.context import Context

#: packages that provide the module ``paddle``; two of them overwrite each other's files
PADDLE_BUILDS = ("paddlepaddle", "paddlepaddle-gpu", "paddlepaddle-xpu", "paddlepaddle-dcu")
PADDLE = "paddlepaddle>=3.0,<4"


@dataclasses.dataclass(frozen=True)
class Extra:
    """An extra of setup.py.

    Attributes:
        marker: the package by which it is seen whether the extra is wanted here.
        requirements: what it needs, as in setup.py.
    """

    name: str
    purpose: str
    marker: str
    requirements: tuple[str, ...]


#: what the library needs, apart from Paddle: ``install_requires`` of setup.py
CORE = (
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
)

EXTRAS = (
    Extra(
        "serving",
        "paddle-ds serve",
        "flask",
        ("flask>=3.0", "gunicorn>=23", "prometheus-client>=0.20", "pyjwt[crypto]>=2.10", "redis>=5"),
    ),
    Extra(
        "hub",
        "hub names and quantisation",
        "paddlenlp",
        (
            "paddlenlp==3.0.0b4",
            "aistudio-sdk==0.2.6",
            "datasets<4",
            "pyarrow<20",
            "numpy<2",
            "safetensors>=0.6,<0.8",
            "decorator",
            "setuptools<81",
            "wheel",
        ),
    ),
    Extra("slim", "paddle-ds quantize", "paddleslim", ("paddleslim==2.6.0", "scikit-learn", "scipy", "matplotlib")),
    Extra("gguf", "writing GGUF with paddle-ds convert", "gguf", ("gguf>=0.17",)),
)

#: why a pin is as it is, for the command that mends it
REASONS: Mapping[str, str] = {
    "paddlenlp": "name the pre-release; --pre drags in others",
    "aistudio-sdk": "paddlenlp imports a name that 0.3 dropped",
    "numpy": "paddlenlp holds numpy at 1.26",
    "datasets": "newer ones want numpy 2",
    "pyarrow": "newer ones want numpy 2",
    "setuptools": "paddleslim imports pkg_resources, which newer ones dropped",
}


@dataclasses.dataclass(frozen=True)
class Undeclared:
    """A requirement that the metadata of ``package`` (of those ``versions``) do not have, and that holds nevertheless."""

    package: str
    versions: str
    requirement: str
    reason: str


UNDECLARED = (
    Undeclared("paddlenlp", "", "aistudio-sdk<0.3", "it imports aistudio_sdk.hub.download, which 0.3 dropped"),
    Undeclared("paddleslim", "", "setuptools<81", "it imports pkg_resources, which 81 dropped"),
    Undeclared("pyarrow", ">=20", "numpy>=2", "it refuses to be imported with an older one"),
)


def name_of(requirement: str) -> str:
    """The package in a requirement of these tables; no need for what parses all that may stand in one.

    >>> name_of("safetensors>=0.6,<0.8"), name_of("pyjwt[crypto]>=2.10")
    ('safetensors', 'pyjwt')
    """
    return re.split(r"[\[<>=]", requirement)[0]


def names() -> set[str]:
    """All packages in these tables, Paddle left out."""
    return _names(extra.requirements for extra in EXTRAS)


def wanted(context: Context) -> set[str]:
    """Packages that are missed where they are not installed: all builds of Paddle, what the library needs, and extras in use."""
    return {*PADDLE_BUILDS, *_names(extra.requirements for extra in EXTRAS if context.version(extra.marker))}


def pin_of(package: str, context: Context) -> str:
    """The requirement for ``package`` that an extra in use has; empty where none has one."""
    used = (extra.requirements for extra in EXTRAS if context.version(extra.marker))
    return next((requirement for each in used for requirement in each if name_of(requirement) == package), "")


def _names(more: Iterable[tuple[str, ...]]) -> set[str]:
    return {name_of(requirement) for requirements in (CORE, *more) for requirement in requirements}
