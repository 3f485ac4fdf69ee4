"""Which operators of a model ran on the device and which fell back to the CPU: for a prefill and for decode steps.

Two sources are combined, because neither knows everything:

- Paddle's verbose log (``coverage_log``) says of each call the kernel, its type, whether it fell back, and what was copied. It is
  the word of Paddle's own dispatcher, at the only place that decides, so views, kernels that all plug-ins share and
  ``CUSTOM_DEVICE_BLACK_LIST`` need no knowledge here. Its clock is useless: writing a log takes longer than small operators do.
- Paddle's profiler (``coverage_time``) times each call. It knows neither places nor types: its ``input_shapes`` and ``dtypes``
  stay empty in eager mode, with ``record_shapes``, too.

The same steps run for each, after some more that fill caches. The n-th call of a kernel in one is the n-th in the other.

What was tried and does not do: ``FLAGS_low_precision_op_list`` counts calls by kernel, but puts all integer types into one and
tells no fallbacks. With ``FLAGS_enable_api_kernel_fallback=0`` the first missing kernel is an error that hides the others. The
table of registered kernels (``devices/kernel_table.py``) does not know which calls a model makes; the log is checked against it.
Where log, profiler and table contradict each other the report says so (``CoverageReport.disagreements``).
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Protocol

import paddle

from paddle_ds.config.sampling import SamplingParams
from paddle_ds.devices.base import Device
from paddle_ds.devices.kernel_table import KernelTable
from paddle_ds.errors import PromptTooLong, UnsupportedError
from paddle_ds.runtime.coverage_log import Call, calls_of
from paddle_ds.runtime.coverage_report import CoverageReport, MissingKernel, OperatorUse, Phase, PhaseName, is_gemm
from paddle_ds.runtime.coverage_time import Times, times_of
from paddle_ds.runtime.model_runner import ModelRunner
from paddle_ds.sched import Chunk, Request, StepPlan

#: kernels that Paddle is told to run on the CPU although the plug-in has them
BLACK_LIST = "CUSTOM_DEVICE_BLACK_LIST"
_FALLBACK = "FLAGS_enable_api_kernel_fallback"
_TIMED_RUNS = 3
_NOT_REGISTERED = re.compile(r"The kernel with key \((\w+), .+, (\w+)\) of kernel `(\w+)` is not registered")


class Loaded(Protocol):
    """What is needed of a loaded model: ``paddle_ds.engine.build.LoadedModel``."""

    @property
    def runner(self) -> ModelRunner: ...
    @property
    def device(self) -> Device: ...


def measure(loaded: Loaded, *, prompt_tokens: int = 32, decode_steps: int = 4) -> CoverageReport:
    """Run a prefill of ``prompt_tokens`` and ``decode_steps`` steps of one token, several times over.

    Uses the first blocks of the cache: no request may be running. What others write to standard output meanwhile is lost.

    Raises:
        PromptTooLong: the cache does not hold so many tokens.
        UnsupportedError: this Paddle does not tell where operators run, or the model needs a kernel that is not there at all.
    """
    device = loaded.device
    table = KernelTable.read()
    steps = _Steps(loaded.runner, prompt_tokens, decode_steps)
    with _named_missing_kernels(device):
        steps.prefill()
        steps.decode()
        prefill = _Measurement("prefill", 1, prompt_tokens, calls_of(steps.prefill))
        decode = _Measurement("decode", decode_steps, decode_steps, calls_of(steps.decode))
        prefill.time(steps.prefill, device)
        decode.time(steps.decode, device)
    contradictions = [*prefill.contradictions(table, device.type), *decode.contradictions(table, device.type)]
    return CoverageReport(
        device=device.name,
        paddle_version=paddle.__version__,
        prefill=prefill.phase(table, device.type),
        decode=decode.phase(table, device.type),
        disagreements=tuple(dict.fromkeys(contradictions)),
    )


def decode_fallbacks(loaded: Loaded) -> list[MissingKernel]:
    """Kernels of a decode step that the device does not have; none on the CPU. Quick: three short steps and no timing.

    Uses the first blocks of the cache: no request may be running.

    Raises:
        UnsupportedError: it cannot be told, or the model needs a kernel that is not there at all.
    """
    device = loaded.device
    if device.type == "cpu":
        return []
    table = KernelTable.read()
    steps = _Steps(loaded.runner, min(8, loaded.runner.capacity_tokens - 1), 1)
    with _named_missing_kernels(device):
        steps.prefill()
        steps.decode()  # what is made once is made now
        return _missing(calls_of(steps.decode), table, device.type)


class _Steps:
    """Drives the runner without a scheduler: one greedy request in the first blocks."""

    def __init__(self, runner: ModelRunner, prompt_tokens: int, decode_steps: int) -> None:
        if prompt_tokens + decode_steps > runner.capacity_tokens:
            raise PromptTooLong.of(prompt_tokens, decode_steps, runner.capacity_tokens)
        self._runner = runner
        self._decode_steps = decode_steps
        self._prompt = [index % runner.decoder.config.vocab_size for index in range(1, prompt_tokens + 1)]
        self._num_blocks = -(-(prompt_tokens + decode_steps) // runner.block_tokens)

    def prefill(self) -> None:
        """One step with the whole prompt."""
        self._step(self._request(), 0)

    def decode(self) -> None:
        """Steps of one token each; the prompt's keys and values are there."""
        request = self._request()
        for _ in range(self._decode_steps):
            request.token_ids.append(self._prompt[-1])  # which token it is makes no difference to the operators
            self._step(request, request.num_tokens - 1)

    def _step(self, request: Request, start: int) -> None:
        self._runner.execute(StepPlan((Chunk(request, start, request.token_ids[start:], sample=True),)))

    def _request(self) -> Request:
        params = SamplingParams(temperature=0)
        request = Request("coverage", self._prompt, params, seed=0, max_new_tokens=self._decode_steps, end_ids=frozenset())
        request.block_ids = list(range(self._num_blocks))
        return request


class _Measurement:
    """Both sources of one phase."""

    def __init__(self, name: PhaseName, steps: int, tokens: int, calls: list[Call]) -> None:
        self._name: PhaseName = name
        self._steps = steps
        self._tokens = tokens
        self._calls = calls
        self._times: Times = {}
        self._step_s = 0.0

    def time(self, run: Callable[[], None], device: Device) -> None:
        """Run the same steps again, a few times over; each call's time is the median."""
        step_s: list[float] = []

        def timed() -> None:
            started = time.perf_counter()
            run()
            step_s.append(time.perf_counter() - started)

        runs = [times_of(timed, device) for _ in range(_TIMED_RUNS)]
        kernels = set().union(*runs)
        self._times = {kernel: [*map(median, zip(*(run.get(kernel, []) for run in runs), strict=False))] for kernel in kernels}
        self._step_s = median(step_s)

    def phase(self, table: KernelTable, device_type: str) -> Phase:
        """What both sources say."""
        groups: dict[tuple[str, str, str, bool], list[tuple[Call, float]]] = defaultdict(list)
        left = {kernel: iter(seconds) for kernel, seconds in self._times.items()}
        for call in self._calls:
            seconds = next(left.get(call.kernel, iter(())), 0.0)
            groups[call.kernel, call.dtype, _place(call, device_type), call.custom].append((call, seconds))
        uses = [_use(*key, members) for key, members in groups.items()]
        uses.sort(key=lambda use: -use.time_s)
        missing = tuple(_missing(self._calls, table, device_type))
        return Phase(self._name, self._steps, self._tokens, self._step_s, tuple(uses), missing)

    def contradictions(self, table: KernelTable, device_type: str) -> Iterator[str]:
        """Sentences on what does not fit together."""
        logged = Counter(call.kernel for call in self._calls)
        for kernel in sorted(logged.keys() | self._times.keys()):
            timed = len(self._times.get(kernel, ()))
            if logged[kernel] != timed:
                yield f"{self._name}: {kernel} is called {logged[kernel]} times in Paddle's log and {timed} times in its profile"
        kept_off = _black_list()
        for call in self._calls:
            if call.custom or _place(call, device_type) == "host":
                continue
            registered = table.has(call.kernel, device_type, call.dtype) and call.kernel not in kept_off
            if registered == call.fell_back:
                does = "falls back, but is" if call.fell_back else "runs on the device, but is not"
                yield f"{self._name}: {call.kernel} ({call.dtype}) {does} among the kernels registered for {device_type}"


def _use(kernel: str, dtype: str, place: str, custom: bool, members: Sequence[tuple[Call, float]]) -> OperatorUse:
    return OperatorUse(
        kernel=kernel,
        dtype=dtype,
        ran_on=place,  # type: ignore[arg-type]
        gemm=is_gemm(kernel),
        custom=custom,
        calls=len(members),
        bytes_to_host=sum(call.bytes_to_host for call, _ in members),
        bytes_to_device=sum(call.bytes_to_device for call, _ in members),
        time_s=sum(seconds for _, seconds in members),
    )


def _place(call: Call, device_type: str) -> str:
    """``device``, ``host`` or ``fallback``, see ``OperatorUse.ran_on``. The CPU is a device where the model runs on it."""
    if call.fell_back:
        return "fallback"
    return "host" if call.backend.lower() == "cpu" != device_type else "device"


def _missing(calls: Iterable[Call], table: KernelTable, device_type: str) -> list[MissingKernel]:
    """One entry for each kernel and type that fell back, in the order of their first calls."""
    groups: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in calls:
        if call.fell_back:
            groups[call.kernel, call.dtype].append(call)
    return [
        MissingKernel(
            kernel,
            dtype,
            _reason(kernel, dtype, table, device_type),
            len(members),
            sum(call.bytes_to_host + call.bytes_to_device for call in members),
        )
        for (kernel, dtype), members in groups.items()
    ]


def _reason(kernel: str, dtype: str, table: KernelTable, device_type: str) -> str:
    dtypes = table.dtypes(kernel, device_type)
    if dtype in dtypes:
        return f"{BLACK_LIST} keeps it off the device" if kernel in _black_list() else "Paddle does not take the device's kernel"
    if dtypes:
        return f"the device has it for {', '.join(sorted(dtypes))}, not for {dtype}"
    return "the device has no kernel of this name"


def _black_list() -> frozenset[str]:
    return frozenset(filter(None, os.environ.get(BLACK_LIST, "").split(",")))


@contextmanager
def _named_missing_kernels(device: Device) -> Iterator[None]:
    """Where Paddle finds no kernel at all, an error that names it."""
    try:
        yield
    except RuntimeError as error:
        match = _NOT_REGISTERED.search(str(error))
        if match is None:
            raise
        backend, dtype, kernel = match.groups()
        allowed = paddle.get_flags(_FALLBACK)[_FALLBACK]
        reason = "Paddle has none on the CPU that it could take" if allowed else f"{_FALLBACK} is off"
        raise UnsupportedError(
            f"the model cannot run on {device.name}: kernel {kernel} ({dtype}) is not registered for {backend}, and {reason}"
        ) from error
