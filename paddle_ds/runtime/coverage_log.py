"""What Paddle says in its own log about each operator call: for which device and type, whether it fell back, what was copied.

At level 7 of its verbose log Paddle 3.0 to 3.3 writes, for one call that falls back::

    Running AD API: softmax                                                             the call from Python begins
    softmax API kernel key: [npu, NCHW, float32]                                        the kernel that is wanted
    missing npu kernel: softmax, expected_kernel_key:(npu, …, float32), fallbacking to CPU one!
    memory::Copy 24 Bytes from Place(npu:0) to Place(cpu), stream=0                     inputs go to the host
    memory::Copy 24 Bytes from Place(cpu) to Place(npu:0), stream=0                     outputs come back
    Finish AD API: softmax

Views have no kernel of the plug-in, but no ``missing`` line and no copies either, and so count as what they are. Copies that a
step makes itself (``numpy()``, uploads of token ids) are outside of calls and do not count.

The log is switched by glog's own flags and functions in Paddle's library, for this purpose only and only meanwhile. It goes to a
file of its own, so that nobody's standard error is touched.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paddle_ds.errors import UnsupportedError

#: dtype of a call whose type the log does not tell (custom operators)
UNKNOWN = ""
_LEVEL = 7
_INFO = 0

_BEGIN_OR_END = re.compile(r"(?:Running|Finish)[ _]AD[ _]API: \w+")
_WANTED = re.compile(r"\] (\w+) API kernel key: \[(\w+), .+, (\w+)\]")
_MISSING = re.compile(r"missing \w+ kernel: (\w+), expected_kernel_key:\((\w+), .+, (\w+)\), fallbacking to CPU")
_COPY = re.compile(r"memory::Copy (\d+) Bytes from Place\((\w*)[:\d]*\) to Place\((\w*)[:\d]*\)")
_CUSTOM = re.compile(r"Run Kernel of Custom Op: (\w+)")


@dataclasses.dataclass
class Call:
    """One operator call.

    Attributes:
        kernel: as the kernel table and errors name it.
        backend: Paddle's name of where it was to run, such as ``npu`` or ``CPU``; empty for a custom operator.
        dtype: of the kernel that was wanted; empty for a custom operator.
        fell_back: there was no such kernel, so it ran on the CPU.
        bytes_to_host: copied from a device to the host within the call.
        bytes_to_device: copied the other way.
    """

    kernel: str
    backend: str
    dtype: str
    fell_back: bool = False
    bytes_to_host: int = 0
    bytes_to_device: int = 0

    @property
    def custom(self) -> bool:
        return not self.backend


def parse(lines: Iterable[str]) -> list[Call]:
    """The calls in Paddle's log, in their order."""
    calls: list[Call] = []
    current: Call | None = None
    for line in lines:
        if _BEGIN_OR_END.search(line):
            current = None
        elif match := _WANTED.search(line):
            current = Call(match[1], match[2], match[3])
            calls.append(current)
        elif match := _MISSING.search(line):
            if current is None or current.kernel != match[1]:  # a kernel that Paddle calls by itself, such as a copy of a view
                current = Call(match[1], match[2], match[3])
                calls.append(current)
            current.fell_back = True
        elif match := _CUSTOM.search(line):
            current = Call(match[1], "", UNKNOWN)
            calls.append(current)
        elif current is not None and (match := _COPY.search(line)):
            if match[2] != "cpu" and match[3] == "cpu":
                current.bytes_to_host += int(match[1])
            elif match[2] == "cpu" and match[3] != "cpu":
                current.bytes_to_device += int(match[1])
    return calls


def calls_of(run: Callable[[], object]) -> list[Call]:
    """Run ``run``, slower than usual, and say which operators it called.

    Raises:
        UnsupportedError: this Paddle's log cannot be switched, or does not say it.
    """
    with tempfile.TemporaryDirectory(prefix="paddle-ds-log-") as directory:
        with _verbose(Path(directory) / "log"):
            run()
        files = sorted(Path(directory).glob("log*"))
        calls: list[Call] = []
        for file in files:
            with file.open(encoding="utf-8", errors="replace") as lines:
                calls += parse(lines)
    if not calls:
        import paddle

        raise UnsupportedError(
            f"Paddle {paddle.__version__} does not say in its log which operators it calls, so it cannot be told where they run; "
            "this works with Paddle 3.0 to 3.3"
        )
    return calls


@contextmanager
def _verbose(destination: Path) -> Iterator[None]:
    """Paddle's verbose log, all severities, into files whose names begin with ``destination``."""
    log = _Glog.of_paddle()
    before = (log.level.value, log.least_severity.value, log.to_stderr.value)
    log.set_symlink(_INFO, b"")
    log.set_destination(_INFO, str(destination).encode())
    log.level.value, log.least_severity.value, log.to_stderr.value = _LEVEL, _INFO, False
    try:
        yield
    finally:
        log.level.value, log.least_severity.value, log.to_stderr.value = before
        log.flush(_INFO)
        log.set_destination(_INFO, b"")


class _Glog:
    """Flags and functions of the copy of glog in Paddle's library, by their mangled names."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.level = ctypes.c_int.in_dll(library, "_ZN3fLI7FLAGS_vE")
        self.least_severity = ctypes.c_int.in_dll(library, "_ZN3fLI17FLAGS_minloglevelE")
        self.to_stderr = ctypes.c_bool.in_dll(library, "_ZN3fLB17FLAGS_logtostderrE")
        self.set_destination = library._ZN6google17SetLogDestinationEiPKc
        self.set_symlink = library._ZN6google13SetLogSymlinkEiPKc
        self.flush = library._ZN6google13FlushLogFilesEi

    @classmethod
    def of_paddle(cls) -> _Glog:
        import paddle

        path = Path(paddle.__file__).parent / "base" / "libpaddle.so"
        try:
            return cls(ctypes.CDLL(str(path)))
        except (OSError, ValueError, AttributeError) as error:
            raise UnsupportedError(
                f"the log of Paddle {paddle.__version__} cannot be switched on from here ({error}), so it cannot be told where "
                "operators run"
            ) from error
