"""The globals a checkpoint's pickle may name, each as a rule of its own: nothing that a pickle names is ever imported.

    numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), b"b")    then BUILD (1, shape, dtype, is_fortran, payload)
    numpy.dtype("f4", False, True)                                   then BUILD (3, "<", ..)
    _codecs.encode(text, "latin1")                                   a payload in protocol 2, which has no bytes
    numpy.core.numeric._frombuffer(payload, dtype, shape, order)     an array in protocol 5

Array and dtype states: ``__reduce__`` of both in numpy's multiarray module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from paddle_ds.errors import TensorDtypeError, UnsafePickleError

#: numpy's code of an element type -> our name; object and structured types are not here on purpose
ELEMENT_TYPES = {
    "f8": "float64",
    "f4": "float32",
    "f2": "float16",
    "i8": "int64",
    "i4": "int32",
    "i2": "int16",
    "u2": "uint16",
    "i1": "int8",
    "u1": "uint8",
    "b1": "bool",
}


@dataclasses.dataclass(frozen=True)
class Span:
    """``nbytes`` of the file from ``start`` on. ``is_text``: UTF-8, and its characters (below 256) are the bytes."""

    start: int
    nbytes: int
    is_text: bool = False


class Text(str):
    """A str that knows where in the file it is, because in protocol 2 it may be an array's payload."""

    span: Span


@dataclasses.dataclass
class ElementType:
    """A numpy dtype in the making."""

    code: str


@dataclasses.dataclass
class PickledArray:
    """A numpy array in the making; complete once ``payload`` is set."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    is_fortran: bool = False
    payload: Span | None = None


@dataclasses.dataclass(frozen=True)
class Global:
    """A name a pickle may use, and what calling it means here."""

    name: str
    call: Callable[..., Any]


def set_state(target: Any, state: Any) -> None:
    """What BUILD does.

    Raises:
        UnsafePickleError: for anything but a fresh array of numbers or a dtype.
        TensorDtypeError: a byte order of other machines.
        ValueError, TypeError, KeyError: a state that makes no sense.
    """
    if isinstance(target, PickledArray) and target.payload is None:
        _fill(target, *state[-4:])
    elif isinstance(target, ElementType):
        if state[1] not in ("<", "|", "="):
            raise TensorDtypeError(f"an array has byte order {state[1]!r}; expected little endian")
    else:
        raise UnsafePickleError(f"the pickle sets the state of {readable(target)}; only numpy arrays are allowed")


def readable(value: Any) -> str:
    """A value of a pickle in an error message."""
    return value.name if isinstance(value, Global) else f"a {type(value).__name__}"


def _fill(array: PickledArray, shape: Any, dtype: Any, is_fortran: Any, payload: Any) -> None:
    """Complete an array from the last four fields of its state."""
    if isinstance(payload, list):
        raise UnsafePickleError("the pickle holds an array of Python objects; only arrays of numbers are allowed")
    if not isinstance(dtype, ElementType) or not isinstance(payload, Span):
        raise ValueError(f"array state with {readable(dtype)} and {readable(payload)}")
    if not isinstance(shape, tuple) or not all(type(extent) is int and extent >= 0 for extent in shape):
        raise ValueError(f"array of shape {shape!r}")
    array.shape, array.dtype = shape, ELEMENT_TYPES[dtype.code]
    array.is_fortran, array.payload = bool(is_fortran), payload


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    if readable(kind) != "numpy.ndarray":
        raise UnsafePickleError(f"the pickle reconstructs {readable(kind)}; only numpy.ndarray is allowed")
    return PickledArray()


def _from_buffer(payload: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    array = PickledArray()
    _fill(array, shape, dtype, order == "F", payload)
    return array


def _dtype(code: Any, align: Any = False, copy: Any = True) -> ElementType:
    if code not in ELEMENT_TYPES:
        raise UnsafePickleError(f"the pickle holds an array of type {code!r}; only arrays of numbers are allowed")
    return ElementType(code)


def _encode(text: Any, encoding: Any) -> Span:
    span = text.span if isinstance(text, Text) else text
    if encoding != "latin1" or not isinstance(span, Span):
        raise ValueError(f"_codecs.encode of {readable(text)} as {encoding!r}")
    return span


def _no_bytes() -> Span:
    return Span(0, 0)


def _tuple(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(items)


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _array_class(*_: Any) -> None:
    raise UnsafePickleError("the pickle calls numpy.ndarray itself; only numpy's own way to rebuild arrays is allowed")


_CALLS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _array_class,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered_dict,
    **{f"{numpy}.multiarray._reconstruct": _reconstruct for numpy in ("numpy.core", "numpy._core")},
    **{f"{numpy}.numeric._frombuffer": _from_buffer for numpy in ("numpy.core", "numpy._core")},
    **{f"{builtins}.bytes": _no_bytes for builtins in ("builtins", "__builtin__")},
    **{f"{builtins}.tuple": _tuple for builtins in ("builtins", "__builtin__")},
}

#: everything a pickle may name, by module and name
GLOBALS = {name: Global(name, call) for name, call in _CALLS.items()}
