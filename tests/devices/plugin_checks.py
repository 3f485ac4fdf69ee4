"""What the emulated device promises, checked from inside a process that has it: run as a program, prints failures as JSON.

Memory of each device: 48 MB. Two devices; device 1 is lost in the end.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from typing import Any

import numpy as np

from paddle_ds.devices import environment

environment.prepare(None)
environment.import_paddle()

import paddle  # noqa: E402

import emulated_device  # noqa: E402
from paddle_ds.devices.discovery import open_device  # noqa: E402

_LIMIT_BYTES = int(os.environ.get("EMULATED_DEVICE_MEMORY_BYTES", "0"))
_MEGABYTE = 1 << 20


def raised(function: Any, kind: type[BaseException], text: str) -> None:
    """``function`` must raise ``kind`` with ``text`` in its message."""
    said = ""
    try:
        function()
    except kind as error:
        said = str(error)
    assert text in said, f"{text!r} is not in {said!r}"


def check_paddle_sees_the_devices() -> None:
    assert paddle.device.get_available_custom_device() == ["npu:0", "npu:1"]
    assert [emulated_device.counters(index).physical for index in range(2)] == [0, 1]


def check_memory_is_aligned_and_accounted_for_each_device_alone() -> None:
    before = [emulated_device.counters(index).used_bytes for index in range(2)]
    tensors = [paddle.empty([size], dtype="uint8") for size in (1, 255, 4097)]
    assert all(tensor.data_ptr() % 256 == 0 for tensor in tensors)
    assert emulated_device.counters(0).used_bytes == before[0] + 256 + 256 + 4352
    assert emulated_device.counters(1).used_bytes == before[1]


def check_memory_statistics_are_true() -> None:
    stats = open_device("npu:0").memory_stats()
    assert stats.total_bytes == _LIMIT_BYTES
    assert stats.available_bytes == _LIMIT_BYTES - emulated_device.counters().used_bytes


def check_an_allocation_over_the_limit_fails_and_succeeds_after_a_free() -> None:
    first = paddle.empty([30 * _MEGABYTE], dtype="uint8")
    refused = emulated_device.counters().refused_allocations
    raised(lambda: paddle.empty([30 * _MEGABYTE], dtype="uint8"), OSError, "CustomDevice error, the error code is : 2")
    assert emulated_device.counters().refused_allocations == refused + 1
    del first
    # Paddle keeps what was freed, and does not give it back when an allocation is answered C_FAILED
    raised(lambda: paddle.empty([31 * _MEGABYTE], dtype="uint8"), OSError, "the error code is : 2")
    paddle.device.empty_cache()
    second = paddle.empty([31 * _MEGABYTE], dtype="uint8")
    assert 31 * _MEGABYTE <= emulated_device.counters().used_bytes <= _LIMIT_BYTES
    assert emulated_device.counters().peak_bytes <= _LIMIT_BYTES
    del second


def check_copies_are_counted_with_their_bytes() -> None:
    emulated_device.reset_counters()
    tensor = paddle.to_tensor(np.zeros(1000, np.float32))
    up = emulated_device.counters().h2d
    assert (up.calls, up.bytes) == (1, 4000)
    tensor.cpu()
    down = emulated_device.counters().d2h
    assert (down.calls, down.bytes) == (1, 4000)
    tensor[0].numpy()  # Paddle copies all of the memory that the view is in, 256 bytes at a time
    assert emulated_device.counters().d2h.bytes == 4000 + 4096
    other = tensor.to("npu:1")
    assert emulated_device.counters(0).d2d.bytes == 4000
    assert (other.cpu().numpy() == 0).all()


def check_launches_are_counted_by_name() -> None:
    x = paddle.ones([3, 3])
    emulated_device.reset_counters()
    paddle.matmul(x, x) + x
    counted = emulated_device.counters()
    assert dict(counted.kernels) == {"matmul": 1, "add": 1}
    assert counted.launches == 2


def check_a_violation_is_counted_where_something_wrote_behind_a_block() -> None:
    paddle.device.empty_cache()
    before = emulated_device.counters().violations
    tensor = paddle.ones([1000])
    emulated_device.overrun(tensor.data_ptr())
    del tensor
    paddle.device.empty_cache()
    assert emulated_device.counters().violations == before + 1


def check_host_memory_handed_over_as_device_memory_is_refused_and_counted() -> None:
    before = emulated_device.counters().violations
    host = np.ones(16, np.float32)
    raised(lambda: emulated_device.read(host.ctypes.data, 64), OSError, "refuses to copy")
    assert emulated_device.counters().violations == before + 1


def check_memory_of_another_device_is_refused_and_counted() -> None:
    here = paddle.ones([4])
    there = paddle.ones([4]).to("npu:1")
    before = emulated_device.counters(0).violations + emulated_device.counters(1).violations
    raised(lambda: here + there, OSError, "not in this device's memory")
    assert emulated_device.counters(0).violations + emulated_device.counters(1).violations == before + 1


def check_a_block_must_hold_all_the_bytes_that_are_copied() -> None:
    tensor = paddle.full([64], 2.0)
    paddle.device.synchronize()
    assert emulated_device.read(tensor.data_ptr(), 256) == np.full(64, 2, np.float32).tobytes()
    raised(lambda: emulated_device.read(tensor.data_ptr(), 257), OSError, "refuses to copy")


def check_a_launch_returns_before_it_has_run() -> None:
    x = paddle.full([3, 3], 2.0)
    paddle.device.synchronize()
    emulated_device.reset_counters()
    emulated_device.hold()
    y = paddle.matmul(x, x) + 1
    event = paddle.device.Event()
    event.record()
    assert emulated_device.counters().launches == 2
    assert not event.query()
    assert not paddle.device.current_stream("npu:0").query()
    emulated_device.release()
    event.synchronize()
    assert event.query()
    assert (y.numpy() == 13).all()


def check_a_copy_from_pageable_memory_takes_it_as_it_was_at_the_call() -> None:
    # Paddle waits for the stream before this copy, so there is nothing to hold; the source changes at once
    source = np.ones(1000, np.float32)
    tensor = paddle.to_tensor(source)
    source[:] = 7
    assert (tensor.numpy() == 1).all()


def check_a_stream_waits_for_another_ones_event() -> None:
    side = paddle.device.Stream(device="npu:0")
    x = paddle.full([2, 2], 3.0)
    paddle.device.synchronize()
    emulated_device.arm("stuck:matmul*1")
    with paddle.device.stream_guard(side):
        y = paddle.matmul(x, x)  # 18, once its stream goes on
        ready = side.record_event()
    main = paddle.device.current_stream("npu:0")
    free = main.record_event()
    free.synchronize()  # the other stream is not stuck
    main.wait_event(ready)
    z = y + 1
    done = main.record_event()
    time.sleep(0.1)  # time enough to go wrong in
    assert not done.query()
    emulated_device.release()
    done.synchronize()
    assert (z.numpy() == 19).all()


def check_memory_is_taken_back_only_when_the_work_that_uses_it_is_done() -> None:
    side = paddle.device.Stream(device="npu:0")
    x = paddle.full([512, 512], 1.0)
    paddle.device.synchronize()
    with paddle.device.stream_guard(side):
        products = [paddle.matmul(x, x) for _ in range(4)]  # some tenths of a second
        del products
    paddle.device.empty_cache()
    assert side.query(), "memory was freed under a kernel that writes it"


def check_a_stuck_stream_blocks_who_waits_until_it_is_released() -> None:
    x = paddle.ones([2, 2])
    emulated_device.arm("stuck:matmul")
    y = paddle.matmul(x, x)
    event = paddle.device.Event()
    event.record()
    order = []

    def release() -> None:
        time.sleep(0.2)  # time for the wait to end too early
        order.append("released")
        emulated_device.release()

    thread = threading.Thread(target=release)
    thread.start()
    assert not event.query()
    assert (y.numpy() == 2).all()  # not synchronize(): it would keep the other thread from running
    order.append("waited")
    thread.join()
    assert order == ["released", "waited"]


def check_an_armed_allocation_failure_hits_the_one_it_is_meant_for() -> None:
    kept = [paddle.empty([_MEGABYTE // 2], dtype="uint8")]
    paddle.device.empty_cache()
    emulated_device.arm("allocation@1*1")
    kept.append(paddle.empty([3 * _MEGABYTE], dtype="uint8"))
    raised(lambda: paddle.empty([4 * _MEGABYTE], dtype="uint8"), OSError, "the error code is : 2")
    kept.append(paddle.empty([5 * _MEGABYTE], dtype="uint8"))
    emulated_device.arm("allocation")
    for _ in range(2):
        raised(lambda: paddle.empty([6 * _MEGABYTE], dtype="uint8"), OSError, "the error code is : 2")


def check_a_refused_launch_raises_at_once_and_the_next_one_works() -> None:
    x = paddle.ones([2, 2])
    emulated_device.arm("launch_error:matmul@1*1")
    assert (paddle.matmul(x, x).numpy() == 2).all()
    raised(lambda: paddle.matmul(x, x), OSError, "kernel matmul: the launch was refused")
    assert (paddle.matmul(x, x).numpy() == 2).all()


def check_a_kernel_that_fails_is_reported_once_by_the_next_wait() -> None:
    x = paddle.ones([2, 2])
    emulated_device.arm("kernel_error:matmul*1")
    paddle.matmul(x, x)
    raised(paddle.device.synchronize, OSError, "CustomDevice error, the error code is : 3")
    paddle.device.synchronize()
    assert (paddle.matmul(x, x).numpy() == 2).all()


def check_an_index_out_of_range_fails_when_the_kernel_runs() -> None:
    picked = paddle.gather(paddle.ones([4, 2]), paddle.to_tensor([9]))
    raised(picked.numpy, OSError, "the error code is : 3")


def check_a_failed_copy_raises() -> None:
    x = paddle.ones([2, 2])
    paddle.device.synchronize()
    emulated_device.arm("launch_error:copy_d2h*1,launch_error:copy_h2d*1")
    raised(x.numpy, OSError, "the error code is : 3")
    raised(lambda: paddle.to_tensor([1.0]), OSError, "the error code is : 3")
    assert (x.numpy() == 1).all()


def check_a_kernel_can_be_made_to_give_nan() -> None:
    x = paddle.ones([2, 2])
    emulated_device.arm("nan:matmul*1")
    assert np.isnan(paddle.matmul(x, x).numpy()).all()
    assert (paddle.matmul(x, x).numpy() == 2).all()


def check_products_do_not_depend_on_neighbouring_rows() -> None:
    x, y = paddle.randn([7, 300]), paddle.randn([33, 300])
    whole = paddle.matmul(x, y, transpose_y=True).numpy()
    assert (whole == paddle.matmul(x, y, transpose_y=True).numpy()).all()
    assert (whole[3] == paddle.matmul(x[3:4], y, transpose_y=True).numpy()[0]).all()


def check_an_unknown_fault_is_an_error() -> None:
    for fault in ("explode", "stuck@", "stuck:", "allocation:matmul", "lost#x"):
        raised(lambda fault=fault: emulated_device.arm(fault), ValueError, fault)


def check_normal_use_leaves_no_violation() -> None:
    counts = [emulated_device.counters(index) for index in range(2)]
    # of the four checks above that provoke one each
    assert sum(count.violations for count in counts) == 4


def check_a_lost_device_answers_errors_and_the_other_goes_on() -> None:
    paddle.set_device("npu:1")
    x = paddle.ones([2, 2])
    paddle.device.synchronize()
    emulated_device.arm("lost#1")
    raised(lambda: paddle.matmul(x, x), OSError, "the device is lost")
    uses = [x.numpy, paddle.device.synchronize, lambda: paddle.empty([_MEGABYTE]), lambda: paddle.to_tensor([1.0])]
    for use in uses:
        raised(use, OSError, "CustomDevice error")
    assert emulated_device.counters(1).lost
    paddle.device.empty_cache()
    paddle.set_device("npu:0")
    assert (paddle.ones([2]) + 1).numpy().tolist() == [2, 2]


def names() -> list[str]:
    """Of all checks, in order."""
    return [name.removeprefix("check_") for name in globals() if name.startswith("check_")]


def main() -> None:
    failures = {}
    for name in names():
        paddle.set_device("npu:0")
        emulated_device.release()
        try:
            globals()[f"check_{name}"]()
            failures[name] = ""
        except BaseException:
            emulated_device.release()  # first of all: what is let go here may wait for a stream that the check left stuck
            failures[name] = traceback.format_exc()[-1500:]
    print(json.dumps(failures))


if __name__ == "__main__":
    main()
