"""PaddleSlim as it is installed, and its modules with a few nodes of their syntax tree replaced when they are loaded.

Nothing of PaddleSlim is copied here: the installed source is read, mended and executed under another name. How often each flaw
occurs is known for the version measured. Where it does not occur at all, PaddleSlim has been repaired and is used as it is; any
other number means code that nobody has looked at, and is refused.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle

from paddle_ds.errors import PaddleDSError, QuantizationError, UnsupportedError
from paddle_ds_slim.paddlenlp_model import quiet

#: what the counts below were taken from
MEASURED_VERSION = "2.6.0"


class Mend(ast.NodeTransformer):
    """Replaces one kind of flaw; ``places`` counts how often it was found."""

    places = 0


class Float16ToFloat32(Mend):
    """``x.cast("float16")`` -> ``x.cast("float32")``.

    On a CPU float16 has no kernel for pow, abs, max, clip or divide, so that ``Smooth`` and ``AutoClip`` end in NotFound.
    """

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if node.value != "float16":
            return node
        self.places += 1
        return ast.copy_location(ast.Constant("float32"), node)


class GuardEmptyIndex(Mend):
    """``H[dead, dead] = 1`` -> the same under ``if dead[0].shape[0]:``.

    ``dead`` lists the input channels that were always zero, mostly none. Paddle 3.3 refuses to assign through an empty index
    tensor (``p_index is nullptr``), so that ``GPTQ`` works only where there is a dead channel.
    """

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        target = node.targets[0]
        if not isinstance(target, ast.Subscript):
            return node
        if not any(isinstance(part, ast.Name) and part.id == "dead" for part in ast.walk(target.slice)):
            return node
        self.places += 1
        test = ast.parse("dead[0].shape[0]", mode="eval").body
        return ast.fix_missing_locations(ast.copy_location(ast.If(test=test, body=[node], orelse=[]), node))


@dataclasses.dataclass(frozen=True)
class Cure:
    """What a module needs and in how many places :data:`MEASURED_VERSION` needs it."""

    mend: type[Mend]
    places: int


CURES = {
    "smooth": Cure(Float16ToFloat32, 3),
    "auto_clip": Cure(Float16ToFloat32, 4),
    "gptq": Cure(GuardEmptyIndex, 2),
}


def version() -> str:
    """The installed PaddleSlim's version; the package has no ``__version__``.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        return importlib.metadata.version("paddleslim")
    except importlib.metadata.PackageNotFoundError as error:
        raise UnsupportedError("PaddleSlim is not installed; pip install paddle-ds[slim] brings it") from error


@functools.cache
def advanced(name: str) -> Any:
    """Module ``paddleslim.quant.advanced.<name>``, mended by its :data:`CURES`.

    Raises:
        UnsupportedError: PaddleSlim, or something that it imports, is not installed.
        QuantizationError: its source has the flaw in another number of places than the version that was measured.
    """
    full_name = f"paddleslim.quant.advanced.{name}"
    module = load(full_name)
    if name not in CURES:
        return module
    file = str(module.__file__)
    tree = mended(Path(file).read_text(encoding="utf-8"), full_name, CURES[name])
    copy = types.ModuleType(f"{full_name}_mended")
    copy.__package__ = module.__package__  # its relative imports
    copy.__file__ = file
    with quiet():
        exec(compile(tree, file, "exec"), copy.__dict__)
    return copy


def mended(source: str, name: str, cure: Cure) -> ast.Module:
    """The syntax tree of a module's ``source`` after ``cure``.

    Raises:
        QuantizationError: the flaw occurs, but not as often as it should.
    """
    mend = cure.mend()
    tree: ast.Module = mend.visit(ast.parse(source))
    if mend.places not in (0, cure.places):
        raise QuantizationError(
            f"{name} of PaddleSlim {version()} has {mend.places} places for {cure.mend.__name__} and not the {cure.places} of "
            f"{MEASURED_VERSION}; install PaddleSlim {MEASURED_VERSION}, or choose a recipe that does without this method"
        )
    return ast.fix_missing_locations(tree)


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Run PaddleSlim: without gradients, its output in the debug log, and whatever it raises as one of our errors.

    Raises:
        QuantizationError: PaddleSlim failed; Paddle below it raises ValueError, RuntimeError, OSError and others.
    """
    try:
        with quiet(), paddle.no_grad():
            yield
    except PaddleDSError:
        raise
    except Exception as error:
        raise QuantizationError(f"PaddleSlim's {what} failed: {last_line(error)}") from error


def last_line(error: Exception) -> str:
    """What an error says; Paddle's messages begin with a C++ trace."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def load(name: str) -> Any:
    """Import ``name`` without what PaddleSlim prints and warns of.

    Raises:
        UnsupportedError: PaddleSlim, or something that it imports, is not installed.
    """
    version()
    with quiet():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                f"{name} cannot be imported: {error.name} is missing; pip install paddle-ds[slim] brings what it needs"
            ) from error
