"""The pickle machine: arrays come out as pickle would make them, and nothing else comes out at all."""

from __future__ import annotations

import builtins
import collections
import contextlib
import io
import os
import pickle
import pickletools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_ds import errors
from paddle_ds.checkpoints.pdparams_file import PdparamsFile

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bfloat16 pattern": np.arange(70_000, dtype=np.uint16),
    "int8 with every byte": np.arange(-128, 128, dtype=np.int8).reshape(16, 16),
    "float16, fortran order": np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4)),
    "a view with gaps": np.arange(20, dtype=np.float32)[::3],
    "a scalar": np.array(2.5, np.float32),
    "nothing": np.empty((0, 4), np.float32),
    "int64": np.array([-1, 2**40]),
    "bool": np.array([True, False]),
}


def write(path: Path, content: bytes) -> Path:
    (path / "model_state.pdparams").write_bytes(content)
    return path / "model_state.pdparams"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5], ids=lambda protocol: f"protocol {protocol}")
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_out_as_they_went_in(tmp_path: Path, name: str, protocol: int) -> None:
    values = ARRAYS[name]
    file = PdparamsFile(write(tmp_path, pickle.dumps({"x": values}, protocol=protocol)))
    found = file.array("x")
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert found.flags.c_contiguous
    assert found.flags.aligned
    np.testing.assert_array_equal(found, values)
    assert file.tensors["x"].nbytes == values.nbytes


def test_many_arrays_one_of_them_twice(tmp_path: Path) -> None:
    tied = np.ones(3, np.float32)
    content = {f"t{number}": np.full(5, number, np.float32) for number in range(2000)} | {"a": tied, "b": tied}
    file = PdparamsFile(write(tmp_path, pickle.dumps(content, protocol=4)))
    assert len(file.tensors) == 2002
    assert file.array("t1999")[0] == 1999
    np.testing.assert_array_equal(file.array("a"), file.array("b"))
    file.release("a")
    file.close()


def test_paddles_own_additions_are_understood(tmp_path: Path) -> None:
    content = collections.OrderedDict(w=("linear_0.w_0", np.ones(3, np.float32)))
    content["StructuredToParameterName@@"] = {"w": "linear_0.w_0"}
    file = PdparamsFile(write(tmp_path, pickle.dumps(content, protocol=4)))
    assert list(file.tensors) == ["w"]


def test_names_of_numpy_2_are_understood(tmp_path: Path) -> None:
    content = pickle.dumps({"x": np.arange(3, dtype=np.float32)}, protocol=2)
    newer = content.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert newer != content
    np.testing.assert_array_equal(PdparamsFile(write(tmp_path, newer)).array("x"), np.arange(3))


def test_opening_does_not_read_the_payload(tmp_path: Path) -> None:
    import tracemalloc

    path = write(tmp_path, pickle.dumps({"x": np.zeros(4_000_000, np.float32)}, protocol=4))
    tracemalloc.start()
    file = PdparamsFile(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.tensors["x"].nbytes == 16_000_000
    assert peak_bytes < 1_000_000


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


MARKER = "/tmp/paddle-ds-test-must-not-exist"


def object_array() -> bytes:
    return pickle.dumps({"x": np.array([Calls(os.system, f"touch {MARKER}")], dtype=object)}, protocol=4)


def built_array() -> bytes:
    """An array whose state smuggles a call in where the payload belongs."""
    array_state = (1, (1,), np.dtype("f4"), False, Calls(os.system, f"touch {MARKER}"))
    return pickle.dumps({"x": Calls(np.core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=array_state)}, protocol=4)


def bad_class_for_reconstruct() -> bytes:
    return pickle.dumps({"x": Calls(np.core.multiarray._reconstruct, np.matrix, (0,), b"b")}, protocol=4)


def attribute_chain() -> bytes:
    """STACK_GLOBAL with a dotted name, which pickle follows attribute by attribute."""
    return b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93."


ATTACKS: dict[str, tuple[bytes, str]] = {
    "os.system": (pickle.dumps({"x": Calls(os.system, f"touch {MARKER}")}, protocol=4), r"(posix|os)\.system"),
    "os.system, protocol 0": (f"cos\nsystem\n(S'touch {MARKER}'\ntR.".encode(), r"os\.system"),
    "builtins.eval": (pickle.dumps({"x": Calls(builtins.eval, "1")}, protocol=4), r"builtins\.eval"),
    "builtins.eval, protocol 2": (pickle.dumps({"x": Calls(builtins.eval, "1")}, protocol=2), r"__builtin__\.eval"),
    "builtins.getattr": (pickle.dumps(Calls(getattr, np.ndarray, "ctypes"), protocol=4), r"builtins\.getattr"),
    "subprocess": (pickle.dumps([Calls(subprocess.Popen, ["true"])], protocol=4), r"subprocess\.Popen"),
    "numpy.load": (pickle.dumps({"x": Calls(np.load, "x", None, True)}, protocol=4), r"numpy\.load"),
    "a class with state": (pickle.dumps({"x": io.StringIO("x")}, protocol=4), r"_io\.StringIO"),
    "a call inside an array's state": (built_array(), r"(posix|os)\.system"),
    "an array of objects": (object_array(), r"(posix|os)\.system|type 'O8'"),
    "plain objects in an array": (pickle.dumps({"x": np.array([None, "a"], dtype=object)}, protocol=4), "type 'O8'"),
    "a structured array": (pickle.dumps({"x": np.zeros(2, "f4,i4")}, protocol=4), "type 'V8'"),
    "text in an array": (pickle.dumps({"x": np.array(["abc"])}, protocol=4), "type 'U3'"),
    "another class in _reconstruct": (bad_class_for_reconstruct(), r"numpy\.matrix"),
    "ndarray itself": (pickle.dumps({"x": Calls(np.ndarray, (1 << 40,))}, protocol=4), r"numpy\.ndarray itself"),
    "a dotted name": (attribute_chain(), r"numpy\.ndarray\.__class__"),
    "INST": (b"(ios\nsystem\n.", r"os\.system \(opcode INST\)"),
    "NEWOBJ of an allowed class": (b"\x80\x02cnumpy\nndarray\n)\x81.", r"numpy\.ndarray \(opcode NEWOBJ\)"),
    "OBJ of an allowed class": (b"\x80\x02(cnumpy\nndarray\no.", r"numpy\.ndarray \(opcode OBJ\)"),
    "state of an allowed function": (b"\x80\x02cnumpy\nndarray\n}b.", r"state of numpy\.ndarray"),
    "state of a dict": (b"\x80\x02}}b.", "state of a dict"),
    "calling a dict": (b"\x80\x02})R.", "calls a dict"),
    "an extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "a persistent object": (b"\x80\x02K\x01Q.", "opcode BINPERSID"),
}


@pytest.mark.parametrize(("content", "message"), ATTACKS.values(), ids=ATTACKS.keys())
def test_what_is_not_an_array_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(errors.UnsafePickleError, match=message) as caught:
        PdparamsFile(path)
    assert str(path) in str(caught.value)
    assert not Path(MARKER).exists()


def test_no_allowed_name_is_a_python_callable() -> None:
    from paddle_ds.checkpoints.pickle_rules import GLOBALS

    assert all(rule.call.__module__ == "paddle_ds.checkpoints.pickle_rules" for rule in GLOBALS.values())


WHOLE = pickle.dumps({"a": np.arange(40, dtype=np.float32), "b": np.arange(9, dtype=np.int8)}, protocol=4)


@pytest.mark.parametrize("kept", range(1, len(WHOLE) - 1, 9))
def test_any_cut_is_noticed(tmp_path: Path, kept: int) -> None:
    with pytest.raises(errors.TruncatedFileError, match="ends at byte"):
        PdparamsFile(write(tmp_path, WHOLE[:kept]))


def test_an_empty_file_is_truncated(tmp_path: Path) -> None:
    with pytest.raises(errors.TruncatedFileError, match="empty"):
        PdparamsFile(write(tmp_path, b""))


NONSENSE = {
    "an npy file": b"\x93NUMPY\x01\x00",
    "a zip archive": b"PK\x03\x04 this is a zip",
    "a list": pickle.dumps([1, 2], protocol=4),
    "a nested state dict": pickle.dumps({"model": {"x": np.ones(2, np.float32)}}, protocol=4),
    "a number among the arrays": pickle.dumps({"x": np.ones(2, np.float32), "step": 3}, protocol=4),
    "bytes after the end": WHOLE + b"x",
    "two pickles": WHOLE + WHOLE,
    "payload too short": WHOLE.replace((40).to_bytes(1, "little") + b"\x85", (41).to_bytes(1, "little") + b"\x85"),
    "empty stack": b"\x80\x04.",
    "unknown memo": b"\x80\x04h\x07.",
    "mark without an end": b"\x80\x04u.",
    "text that is no text": b"\x80\x04}\x8c\x02\xff\xffNs.",
}


@pytest.mark.parametrize("content", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_called_corrupt(tmp_path: Path, content: bytes) -> None:
    assert content != WHOLE
    with pytest.raises(errors.CorruptFileError, match=r"model_state\.pdparams"):
        PdparamsFile(write(tmp_path, content))


def test_random_damage_gives_named_errors_only(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(WHOLE)
        for position in random.integers(len(WHOLE), size=3):
            damaged[position] = random.integers(256)
        with contextlib.suppress(errors.CheckpointError):
            PdparamsFile(write(tmp_path, bytes(damaged)))


def test_big_endian_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.TensorDtypeError, match="byte order '>'"):
        PdparamsFile(write(tmp_path, pickle.dumps({"x": np.ones(2, ">f4")}, protocol=4)))


def test_torn_tensors_are_refused_with_advice(tmp_path: Path) -> None:
    content = {"x@@.0": np.ones(2, np.float32), "UnpackBigParamInfor@@": {"x": {"slices": ["x@@.0"]}}}
    with pytest.raises(errors.UnsupportedError, match="protocol=4"):
        PdparamsFile(write(tmp_path, pickle.dumps(content, protocol=2)))


def test_every_opcode_of_plain_array_pickles_is_known() -> None:
    from paddle_ds.checkpoints.pickle_machine import _ACTIONS

    for protocol in (2, 3, 4, 5):
        for opcode, _, _ in pickletools.genops(pickle.dumps(list(ARRAYS.values()), protocol=protocol)):
            assert opcode.code == "." or opcode.code.encode("latin1") in _ACTIONS
