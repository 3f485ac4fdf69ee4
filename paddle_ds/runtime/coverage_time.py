"""How long each operator call takes, from Paddle's profiler.

A call's time is that of the profiler's node for the call from Python, so the copies of a fallback are in it. With
``FLAGS_benchmark`` Paddle waits for the device after every kernel; without it, the time of asynchronous work would be found in
whatever waits next. Paddle also prints a line a kernel then, which is sent to nowhere.

Paddle's profiler does not know custom operators; they are timed here, each until the device has finished.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import paddle
from paddle.base import core
from paddle.profiler import Profiler, ProfilerTarget

from paddle_ds.devices.base import Device
from paddle_ds.kernels import native

_LAUNCH = " kernel launch"

#: kernel -> seconds of its calls, in their order
Times = dict[str, list[float]]


def times_of(run: Callable[[], object], device: Device) -> Times:
    """Run ``run`` and say how long each operator call took."""
    profiler = Profiler(targets=[ProfilerTarget.CPU], on_trace_ready=lambda profiler: None)
    with _benchmark(), _timed_custom_operators(device) as custom:
        profiler.start()
        try:
            run()
        finally:
            profiler.stop()
    times = launches(profiler.profiler_result.get_data())
    return {**times, **custom}


def launches(roots: dict[int, Any]) -> Times:
    """Kernel -> seconds, from the profiler's trees (thread -> root).

    ::

        softmax dygraph              Operator: the whole call, copies included
          softmax infer_meta
          softmax kernel launch      DygraphKernelLaunch: the kernel alone

    A call that launches several kernels gives its time to the first. A launch outside of any call has its own.
    """
    found: list[tuple[int, str, float]] = []

    def walk(node: Any, unclaimed: list[float] | None) -> None:
        """``unclaimed``: seconds of the call around ``node`` that no launch has yet; ``None`` outside of calls."""
        if node.type == core.TracerEventType.Operator:
            unclaimed = [_seconds(node) - _nested_seconds(node)]
        elif node.name.endswith(_LAUNCH):
            taken = _seconds(node) if unclaimed is None else sum(unclaimed)
            found.append((node.start_ns, node.name.removesuffix(_LAUNCH), taken))
            if unclaimed:
                unclaimed.clear()
        for child in node.children_node:
            walk(child, unclaimed)

    for root in roots.values():
        walk(root, None)
    times: Times = defaultdict(list)
    for _, kernel, seconds in sorted(found):
        times[kernel].append(seconds)
    return dict(times)


def _seconds(node: Any) -> float:
    return float((node.end_ns - node.start_ns) * 1e-9)


def _nested_seconds(node: Any) -> float:
    """Time of calls within the call ``node``, which they count themselves."""
    calls = core.TracerEventType.Operator
    return sum(_seconds(child) if child.type == calls else _nested_seconds(child) for child in node.children_node)


@contextmanager
def _benchmark() -> Iterator[None]:
    """Paddle waits after each kernel; what it prints about that is dropped."""
    flag = "FLAGS_benchmark"
    before = paddle.get_flags(flag)
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        paddle.set_flags({flag: True})
        yield
    finally:
        paddle.set_flags(before)
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _timed_custom_operators(device: Device) -> Iterator[Times]:
    """Times of custom operators, those of the project on the CPU and those that packages for a device bring along."""
    times: Times = defaultdict(list)

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: str, *arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(name, *arguments)
            device.synchronize()
            times[name].append(time.perf_counter() - started)
            return result

        return call

    entrances: list[tuple[Any, str]] = [(paddle._C_ops, "_run_custom_op"), (core.eager, "_run_custom_op")]
    if device.type == "cpu" and native.why_unavailable() is None:
        entrances.append((native.library(), "run"))
    with ExitStack() as stack:
        for owner, name in entrances:
            stack.enter_context(_replaced(owner, name, timed(getattr(owner, name))))
        yield times


@contextmanager
def _replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
    """``owner.name`` is ``function`` for a while; an instance gets an attribute of its own, which goes away again."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
