"""A pickle machine that builds containers and descriptions of numpy arrays, and nothing else.

``.pdparams`` files are pickles, and unpickling runs what a pickle names. This machine walks the opcodes over a memory
map and imports nothing: names are looked up in ``pickle_rules``. Payloads of arrays are not read but remembered as spans
of the file, so that gigabytes cost kilobytes until a tensor is asked for. Opcodes: Lib/pickletools.py of CPython.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paddle_ds.checkpoints.pickle_rules import GLOBALS, Global, Span, Text, readable, set_state
from paddle_ds.errors import CorruptFileError, TensorDtypeError, TruncatedFileError, UnsafePickleError

#: a longer str can only be the payload of an array, and stays in the file
_LONGEST_NAME_BYTES = 1 << 16

_MARK = object()


def run(path: Path, data: mmap.mmap) -> Any:
    """What the pickle stands for: dict, list, tuple, str, numbers, ``Span`` for bytes and ``PickledArray``.

    Raises:
        UnsafePickleError: it names a global without a rule, holds objects, or uses an opcode that makes some.
        TruncatedFileError: it ends before its STOP.
        CorruptFileError: it is not a pickle, or one that makes no sense.
        TensorDtypeError: an array in the byte order of other machines.
    """
    if data[:4] == b"PK\x03\x04":
        raise CorruptFileError(f"{path}: a zip archive, as PyTorch writes, and no pickle of arrays")
    machine = _Machine(path, data)
    try:
        return machine.run()
    except (UnsafePickleError, TensorDtypeError) as error:
        raise type(error)(f"{path}: {error.message}") from None
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        where = f"{path}: byte {machine.position}"
        raise CorruptFileError(f"{where}: not a pickle of arrays: {type(error).__name__}: {error}") from error


class _Machine:
    """Stack, memo and position of one run. One method per kind of opcode, below the ones that read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self.position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            opcode = self._take(1)
            if opcode == b".":
                result = self._stack.pop()
                if self._stack or self.position != len(self._data):
                    raise CorruptFileError(f"{self._path}: byte {self.position}: expected the pickle to end here")
                return result
            if opcode in _MAKES_OBJECTS:
                self._refuse_object(opcode)
            if opcode not in _ACTIONS:
                raise ValueError(f"{opcode!r} is no opcode that arrays need")
            _ACTIONS[opcode](self)

    def _refuse_object(self, opcode: bytes) -> None:
        if opcode == b"i":
            name = f"{self._line()}.{self._line()}"
        else:
            named = [item.name for item in self._stack if isinstance(item, Global)]
            name = named[-1] if named else "an object of its own"
        raise UnsafePickleError(
            f"the pickle wants to make {name} (opcode {_MAKES_OBJECTS[opcode]}); only numpy arrays are allowed"
        )

    def _take(self, nbytes: int) -> bytes:
        start = self._skip(nbytes)
        return self._data[start : start + nbytes]

    def _skip(self, nbytes: int) -> int:
        start, end = self.position, self.position + nbytes
        if nbytes < 0:
            raise ValueError(f"a length of {nbytes}")
        if end > len(self._data):
            raise TruncatedFileError(f"{self._path}: the file ends at byte {len(self._data)}; expected at least {end}")
        self.position = end
        return start

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position)
        if end < 0:
            raise TruncatedFileError(f"{self._path}: the file ends at byte {len(self._data)} inside a name")
        return self._take(end + 1 - self.position)[:-1].decode("utf-8")

    def _pop_to_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise ValueError("no mark on the stack")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise ValueError("items for something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)) or key in target:
                raise ValueError(f"key {key!r} is no name or appears twice")
            target[key] = value

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_number(self, layout: str) -> None:
        self.push(self._number(layout))

    def push_float(self) -> None:
        self.push(struct.unpack(">d", self._take(8))[0])

    def push_long(self) -> None:
        self.push(int.from_bytes(self._take(self._number("<B")), "little", signed=True))

    def push_bytes(self, layout: str) -> None:
        nbytes = self._number(layout)
        self.push(Span(self._skip(nbytes), nbytes))

    def push_text(self, layout: str) -> None:
        nbytes = self._number(layout)
        span = Span(self._skip(nbytes), nbytes, is_text=True)
        if nbytes > _LONGEST_NAME_BYTES:
            self.push(span)
            return
        text = Text(self._data[span.start : span.start + nbytes].decode("utf-8"))
        text.span = span
        self.push(text)

    def push_global(self, is_on_stack: bool) -> None:
        if is_on_stack:
            name, module = self._stack.pop(), self._stack.pop()
        else:
            module, name = self._line(), self._line()
        found = GLOBALS.get(f"{module}.{name}")
        if found is None:
            raise UnsafePickleError(
                f"the pickle wants to use {module}.{name}; only numpy arrays and plain containers are allowed"
            )
        self.push(found)

    def make_tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise ValueError("too few items for a tuple")
        items = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self.push(items)

    def append(self, is_to_mark: bool) -> None:
        items = self._pop_to_mark() if is_to_mark else [self._stack.pop()]
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("items for something that is not a list")
        target.extend(items)

    def set_one(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def set_to_mark(self) -> None:
        items = self._pop_to_mark()
        self._set(items)

    def make_dict(self) -> None:
        items = self._pop_to_mark()
        self.push({})
        self._set(items)

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Global):
            raise UnsafePickleError(f"the pickle calls {readable(function)}; only numpy arrays are allowed")
        self.push(function.call(*arguments))

    def build(self) -> None:
        state = self._stack.pop()
        set_state(self._stack[-1], state)


_Action = Callable[[_Machine], object]

_ACTIONS: dict[bytes, _Action] = {
    b"\x80": lambda m: m._take(1),  # PROTO
    b"\x95": lambda m: m._take(8),  # FRAME: a hint for buffering readers
    b"(": lambda m: m.push(_MARK),
    b"0": lambda m: m._stack.pop(),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push_number("<i"),
    b"K": lambda m: m.push_number("<B"),
    b"M": lambda m: m.push_number("<H"),
    b"\x8a": lambda m: m.push_long(),
    b"G": lambda m: m.push_float(),
    b"C": lambda m: m.push_bytes("<B"),
    b"B": lambda m: m.push_bytes("<I"),
    b"\x8e": lambda m: m.push_bytes("<Q"),
    b"\x96": lambda m: m.push_bytes("<Q"),  # BYTEARRAY8
    b"\x8c": lambda m: m.push_text("<B"),
    b"X": lambda m: m.push_text("<I"),
    b"\x8d": lambda m: m.push_text("<Q"),
    b"c": lambda m: m.push_global(is_on_stack=False),
    b"\x93": lambda m: m.push_global(is_on_stack=True),
    b")": lambda m: m.make_tuple(0),
    b"\x85": lambda m: m.make_tuple(1),
    b"\x86": lambda m: m.make_tuple(2),
    b"\x87": lambda m: m.make_tuple(3),
    b"t": lambda m: m.push(tuple(m._pop_to_mark())),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m._pop_to_mark()),
    b"a": lambda m: m.append(is_to_mark=False),
    b"e": lambda m: m.append(is_to_mark=True),
    b"}": lambda m: m.push({}),
    b"d": lambda m: m.make_dict(),
    b"s": lambda m: m.set_one(),
    b"u": lambda m: m.set_to_mark(),
    b"q": lambda m: m.put(m._number("<B")),
    b"r": lambda m: m.put(m._number("<I")),
    b"\x94": lambda m: m.put(len(m._memo)),  # MEMOIZE
    b"h": lambda m: m.get(m._number("<B")),
    b"j": lambda m: m.get(m._number("<I")),
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
}

#: opcodes that make instances of classes, or ask the reader for objects it knows
_MAKES_OBJECTS = {
    b"i": "INST",
    b"o": "OBJ",
    b"\x81": "NEWOBJ",
    b"\x92": "NEWOBJ_EX",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"P": "PERSID",
    b"Q": "BINPERSID",
}
